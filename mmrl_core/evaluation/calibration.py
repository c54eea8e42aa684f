"""What few-shot validation decides beside the training: a temperature, and how much a head counts. Nothing is trained.

N validation images, C trained classes, logits (N, C), labels (N,). A handful of images, all of them classified rightly,
would ask for endless confidence: so a temperature only softens, and what is compared is compared with targets that
leave a share for all classes, as much as if one image more had been anybody's (after Platt, 1999). Whatever is chosen
is used only where it helps by more than the standard error of the mean difference, image by image.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor

from mmrl_core.rounding import SCORE, at_most, first_of_best

T = TypeVar("T")
SOFTENING = [2.0 ** (step / 8) for step in range(25)]  # temperatures of 1 to 8
SCALES = [2.0 ** (step / 4) for step in range(-8, 13)]  # 1/4 to 8: at which of them logits are compared
OWN_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 2.0)  # beside a head's 1


class Fusion(NamedTuple):
    """Weights of the adapter's own logits and of its head's."""

    adapter: float
    head: float


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every image, in nats (N,)."""
    return F.cross_entropy(logits.detach().cpu().double(), labels.cpu(), reduction="none")


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """The mean over the images, in nats."""
    return float(losses(logits, labels).mean())


def loss(logits: Tensor, labels: Tensor) -> float:
    """The mean of `smoothed_losses`: what the logits know, however sure they are of it."""
    return float(smoothed_losses(logits, labels).mean())


def smoothed_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every image with targets smoothed by one image in N + 1, at the scale of the least mean, in nats
    (N,)."""
    logits, labels, share = logits.detach().cpu().double(), labels.cpu(), 1 / (len(labels) + 1)
    scaled = (F.cross_entropy(logits / one, labels, reduction="none", label_smoothing=share) for one in SCALES)
    return min(scaled, key=lambda one: float(one.mean()))


def temperature(logits: Tensor, labels: Tensor) -> float:
    """What to divide logits by: the temperature of the least cross-entropy (Guo et al., 2017), the first of those
    within SCORE; 1 where it does not help, and without an image."""
    if not len(labels):
        return 1.0
    found = first_of_least((one, cross_entropy(logits / one, labels)) for one in SOFTENING)
    return found if helps(losses(logits, labels), losses(logits / found, labels)) else 1.0


def fusion(own: Tensor, head: Tensor, labels: Tensor) -> Fusion:
    """Weights of the adapter's own logits and of its head's (N, C each): those of the least `loss`, of those within
    SCORE the adapter's least; the adapter's alone where others do not help, and without an image."""
    alone = Fusion(1.0, 0.0)
    if not len(labels):
        return alone
    pairs = [Fusion(weight, 1.0) for weight in OWN_WEIGHTS]
    found = first_of_least((pair, loss(pair.adapter * own + pair.head * head, labels)) for pair in pairs)
    fused = found.adapter * own + found.head * head
    return found if helps(smoothed_losses(own, labels), smoothed_losses(fused, labels)) else alone


def helps(before: Tensor, after: Tensor) -> bool:
    """Whether losses (N,) fall on average, by more than one standard error of the mean difference and SCORE; not where
    one is no number."""
    gain = before - after
    error = float(gain.std() / len(gain) ** 0.5) if len(gain) > 1 else 0.0
    fall = float(gain.mean())
    return math.isfinite(fall) and not at_most(fall, error + SCORE)


def first_of_least(scored: Iterable[tuple[T, float]]) -> T:
    """The first whose loss is within SCORE of the least."""
    return first_of_best(scored, lambda one: -one[1])[0]
