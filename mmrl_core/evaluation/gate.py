"""The promotion gate: whether a challenger is better than the champion, from their answers to the same images.

A pure function of outcomes and bounds; nothing here reads a file or a registry. n images of a part (such as base and
novel), b of them right by the challenger alone, c by the champion alone.
"""

import hashlib
from collections.abc import Mapping
from math import sqrt
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, NamedTuple

from mmrl_core.protocols import harmonic_mean
from mmrl_core.rounding import at_most

if TYPE_CHECKING:
    import numpy as np

ACCEPTED, REFUSED, INCONCLUSIVE = "accepted", "refused", "inconclusive"


def is_gate_image(path: str) -> bool:
    """Whether a validation image, by its path in the dataset, is kept for the gate: about half of them are.

    The split's only users are gates: validation leaves these images out, so nothing was chosen on them.
    """
    return hashlib.sha256(f"gate {path}".encode()).digest()[0] < 128


class Bounds(NamedTuple):
    """`margin` and `novel_loss` are accuracies in [0, 1]; `significance` is that of one-sided tests; `latency` the
    most that the challenger's time for an image may be, as a multiple of the champion's."""

    margin: float = 0.0
    significance: float = 0.05
    novel_loss: float = 0.05
    latency: float = 1.5


SHIPPED = Bounds()


class Pair(NamedTuple):
    """One part's images: whether each was classified rightly, (n,) bool each."""

    champion: "np.ndarray"
    challenger: "np.ndarray"


class Decision(NamedTuple):
    """`reasons` say in one line each what was found, whatever the verdict; `figures` are what they rest on."""

    verdict: str
    reasons: list[str]
    figures: dict[str, float]

    @property
    def accepted(self) -> bool:
        return self.verdict == ACCEPTED


def latency_ratio(seconds: "np.ndarray") -> float:
    """The challenger's time for an image over the champion's, of `seconds` (rounds, images, [champion, challenger]).

    An image's time is its fastest, for what else the machine does can only add to it; medians over images.
    """
    import numpy as np

    champion, challenger = np.median(seconds.min(axis=0), axis=0)
    return float(challenger / champion)


class _Finding(NamedTuple):
    verdict: str
    reason: str
    figures: dict[str, float]


def decide(parts: Mapping[str, Pair], latency_ratio: float, bounds: Bounds = SHIPPED) -> Decision:
    """Accepted when everything holds, refused when something speaks against it, else inconclusive: a refusal as well.

    Asked for are a harmonic mean (of one part alone: an accuracy) of at least the champion's plus `margin`; McNemar's
    exact test (1947) over all images together in the challenger's favour; an upper confidence bound of `novel_loss` on
    what the accuracy of novel images loses; and a latency within its bound.
    """
    if not sum(len(pair.champion) for pair in parts.values()):
        return Decision(INCONCLUSIVE, ["there is no image for the gate; give the dataset more validation images"], {})
    findings = [_mean(parts, bounds), _mcnemar(parts, bounds), _latency(latency_ratio, bounds)]
    if "novel" in parts:
        findings.append(_novel(parts["novel"], bounds))
    verdicts = {finding.verdict for finding in findings}
    verdict = next(verdict for verdict in (REFUSED, INCONCLUSIVE, ACCEPTED) if verdict in verdicts)
    figures = {name: value for finding in findings for name, value in finding.figures.items()}
    return Decision(verdict, [finding.reason for finding in findings], figures)


def _mean(parts: Mapping[str, Pair], bounds: Bounds) -> _Finding:
    champion, challenger = _means(parts, 0), _means(parts, 1)
    name = "harmonic mean" if "novel" in parts else "accuracy"
    enough = at_most(champion + bounds.margin, challenger)
    wanted = f"the champion's {champion:.2%} plus {bounds.margin:.2%}"
    reason = f"{name} {challenger:.2%} is {'at least' if enough else 'less than'} {wanted}"
    return _Finding(ACCEPTED if enough else REFUSED, reason, {"champion": champion, "challenger": challenger})


def _means(parts: Mapping[str, Pair], which: int) -> float:
    """0: of the champion, 1: of the challenger."""
    means = {part: float(pair[which].mean()) if len(pair[which]) else 0.0 for part, pair in parts.items()}
    return harmonic_mean(means["base"], means["novel"]) if "novel" in means else fmean(means.values())


def discordant(pair: Pair) -> tuple[int, int]:
    """b, c: the images that only the challenger, and only the champion, classified rightly."""
    return int((pair.challenger & ~pair.champion).sum()), int((pair.champion & ~pair.challenger).sum())


def _mcnemar(parts: Mapping[str, Pair], bounds: Bounds) -> _Finding:
    """Exact, one-sided either way: P(X >= b) of X ~ Binomial(b + c, 1/2)."""
    from scipy.stats import binom  # a second, which who only asks for the gate's images need not wait

    b, c = map(sum, zip(*(discordant(pair) for pair in parts.values()), strict=True))
    n = sum(len(pair.champion) for pair in parts.values())
    better, worse = float(binom.sf(b - 1, b + c, 0.5)), float(binom.sf(c - 1, b + c, 0.5))
    seen = f"of {n} images {b} only by the challenger, {c} only by the champion"
    figures = {"n": n, "only_challenger": b, "only_champion": c, "p_better": better, "p_worse": worse}
    if at_most(better, bounds.significance):
        return _Finding(ACCEPTED, f"better: {seen} (McNemar p = {better:.2g})", figures)
    if at_most(worse, bounds.significance):
        return _Finding(REFUSED, f"worse: {seen} (McNemar p = {worse:.2g})", figures)
    reason = f"inconclusive: {seen} (McNemar p = {better:.2g}); that is too few to tell, more images could"
    return _Finding(INCONCLUSIVE, reason, figures)


def _novel(pair: Pair, bounds: Bounds) -> _Finding:
    n = len(pair.champion)
    if not n:
        return _Finding(INCONCLUSIVE, "inconclusive: there is no novel image to bound the loss on", {"novel_n": 0})
    loss, upper = loss_bound(pair, bounds.significance)
    figures = {"novel_n": n, "novel_loss": loss, "novel_loss_bound": upper}
    seen = f"on {n} novel images the accuracy falls by {loss:.2%}, at most {upper:.2%}"
    if at_most(upper, bounds.novel_loss):
        return _Finding(ACCEPTED, f"{seen}, within {bounds.novel_loss:.2%}", figures)
    if not at_most(loss, bounds.novel_loss):
        return _Finding(REFUSED, f"{seen}, more than {bounds.novel_loss:.2%}", figures)
    return _Finding(INCONCLUSIVE, f"inconclusive: {seen}, which may be more than {bounds.novel_loss:.2%}", figures)


def loss_bound(pair: Pair, significance: float) -> tuple[float, float]:
    """What the accuracy falls by, and its upper confidence bound: Agresti and Min's adjusted Wald interval (2005) for
    paired proportions, half an image added to each of the four cells."""
    n, (b, c) = len(pair.champion), discordant(pair)
    total, difference = n + 2, (c - b) / (n + 2)
    error = sqrt(((b + c + 1) / total - difference**2) / total)
    return (c - b) / n, min(1.0, difference + NormalDist().inv_cdf(1 - significance) * error)


def _latency(ratio: float, bounds: Bounds) -> _Finding:
    verdict = ACCEPTED if at_most(ratio, bounds.latency) else REFUSED
    word = "within" if verdict == ACCEPTED else "more than"
    return _Finding(verdict, f"an image takes {ratio:.2f} times as long, {word} {bounds.latency:g}", {"latency": ratio})
