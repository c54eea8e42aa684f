"""What is kept of probabilities: of every image its answer, and how its own class fared.

N images, C classes, B images of a batch. Accuracies and probabilities are fractions in [0, 1]. Whatever is asked of an
evaluation follows from these and from `one_vs_rest.py`, so that the probabilities themselves, N times C of them, are
never in memory together.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mmrl_core.evaluation.ranking import largest

ECE_BINS = 15
TOP = 5


class Answers(NamedTuple):
    """Of N images; places are those of the classes."""

    best: Tensor  # (N,) the most probable class
    confidence: Tensor  # (N,) its probability
    true: Tensor  # (N,) the probability of the image's class
    before: Tensor  # (N,) how many classes come before the image's, of equal ones those that the list has later
    top: Tensor  # (N, TOP or C) the most probable classes, of equal ones the first
    top_values: Tensor  # (N, TOP or C)

    def at(self, rows: Tensor) -> "Answers":
        """Those of some of the images."""
        return Answers(*(column[rows] for column in self))


def answers_of(probabilities: Tensor, labels: Tensor) -> Answers:
    """Of (B, C) against (B,)."""
    confidence, best = probabilities.max(dim=-1)
    true = probabilities.gather(1, labels[:, None])
    place = torch.arange(probabilities.shape[1])
    before = (probabilities > true) | ((probabilities == true) & (place > labels[:, None]))
    top_values, top = largest(probabilities, TOP)  # the first of them is the best one, whatever is equal
    return Answers(best, confidence, true[:, 0], before.sum(dim=1), top, top_values)


def joined(parts: Iterable[Answers]) -> Answers:
    """The images of all parts, one part after another."""
    return Answers(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def calibration_error(answers: Answers, labels: Tensor, bins: int = ECE_BINS) -> float:
    """ECE with equal-width bins of the top probability (Guo et al., 2017): a fraction."""
    correct = (answers.best == labels).double()
    index = (answers.confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.double).index_add_(0, index, correct - answers.confidence.double())
    return float(gaps.abs().sum() / len(labels))


def summary_of(answers: Answers, labels: Tensor) -> dict[str, float]:
    """accuracy, n, calibration error (ece) and mean negative log-likelihood (nll, nats)."""
    return {
        "accuracy": float((answers.best == labels).double().mean()),
        "n": len(labels),
        "ece": calibration_error(answers, labels),
        "nll": float(-answers.true.clamp_min(1e-12).double().log().mean()),
    }
