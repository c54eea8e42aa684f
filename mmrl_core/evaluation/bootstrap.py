"""Paired bootstrap intervals for an adapter's gain over zero-shot, and over another adapter.

S sampling seeds, n images of one half; correctness is boolean, gains are fractions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmrl_core.errors import UserError

REPLICATES = 2000


class Outcomes(NamedTuple):
    """One part's images of one run: which they are, and whether each was classified rightly."""

    items: list[str]
    adapted: np.ndarray  # (n,) bool
    zero_shot: np.ndarray  # (n,) bool


def paired_gains(runs: Sequence[dict[str, Outcomes]], replicates: int = REPLICATES) -> dict[str, dict[str, float]]:
    """Gain over zero-shot in each part's accuracy: mean, and 95% interval (low, high); also in the harmonic mean of
    base and novel where these are the parts.

    `runs` holds the outcomes of the protocol's parts by name, one dict a seed, on the same images in the same order
    (UserError otherwise). The harmonic mean is that of the seed means. Percentile bootstrap (Efron and Tibshirani,
    1993): every replicate draws images within each part, the same for adapter and zero-shot and for all seeds, and
    draws seeds where there are several; so the interval covers the choice of test images and of few-shot samples. Few
    seeds understate the latter: S of them show (S - 1) / S of its variance. Deterministic.
    """
    if any(run.keys() != runs[0].keys() for run in runs):
        raise UserError("the runs of different seeds were tested on different parts; run `mmrl evaluate` for all")
    size, rng = len(runs), np.random.default_rng(0)
    point, drawn = {}, {}
    for part in runs[0]:
        right, counts = _patterns([run[part] for run in runs])
        n = counts.sum()
        point[part] = right @ counts[:, None] / n
        drawn[part] = right @ rng.multinomial(n, counts / n, replicates).T / n
    mean = _gains(point, np.ones((1, size)))[:, 0]
    weights = rng.multinomial(size, np.full(size, 1 / size), replicates)
    low, high = np.percentile(_gains(drawn, weights), [2.5, 97.5], axis=1)
    names = [*point, "harmonic_mean"] if _has_halves(point) else list(point)
    columns = zip(names, mean, low, high, strict=True)
    return {name: dict(zip(("mean", "low", "high"), map(float, values), strict=True)) for name, *values in columns}


def paired_differences(
    runs: Sequence[dict[str, Outcomes]], others: Sequence[dict[str, Outcomes]], replicates: int = REPLICATES
) -> dict[str, dict[str, float]]:
    """What `paired_gains` gives, of one method's adapters over another's in place of zero-shot.

    The runs are paired in order, so one of each seed: a replicate draws the same images and seeds for both methods.
    Raises as `paired_gains`, and UserError where the two of a pair were not tested on the same parts and images.
    """
    return paired_gains([_against(*pair) for pair in zip(runs, others, strict=True)], replicates)


def _against(run: dict[str, Outcomes], other: dict[str, Outcomes]) -> dict[str, Outcomes]:
    if {part: of_part.items for part, of_part in run.items()} != {part: one.items for part, one in other.items()}:
        raise UserError("tested on different images; run `mmrl evaluate` for all")
    return {part: Outcomes(of_part.items, of_part.adapted, other[part].adapted) for part, of_part in run.items()}


def _patterns(runs: list[Outcomes]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct columns (2, S, P) of adapter's and zero-shot's correctness, and the images of each (P,).

    Images of one pattern are interchangeable, so drawing patterns by their counts is drawing images.
    """
    if any(run.items != runs[0].items for run in runs):
        raise UserError("the runs of different seeds were tested on different images; run `mmrl evaluate` for all")
    right = np.array([run.adapted for run in runs] + [run.zero_shot for run in runs])
    patterns, counts = np.unique(right, axis=1, return_counts=True)
    return patterns.reshape(2, len(runs), -1).astype(float), counts


def _gains(accuracies: dict[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Adapter minus zero-shot, a row (R,) a part and one for the harmonic mean, from accuracies (2, S, R) and seeds'
    weights (R, S)."""
    shares = weights.T / weights.sum(1)  # (S, R)
    means = {part: (values * shares).sum(1) for part, values in accuracies.items()}  # (2, R)
    if _has_halves(means):
        total = means["base"] + means["novel"]
        product = 2 * means["base"] * means["novel"]
        means["harmonic_mean"] = np.divide(product, total, out=np.zeros_like(total), where=total > 0)
    return np.stack([adapted - zero_shot for adapted, zero_shot in means.values()])


def _has_halves(parts: dict) -> bool:
    return parts.keys() == {"base", "novel"}
