"""Paired bootstrap intervals for an adapter's gain over zero-shot.

S sampling seeds, n images of one half; correctness is boolean, gains are fractions.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mmrl_core.errors import UserError

REPLICATES, CHUNK = 2000, 100
HALVES = ("base", "novel")


class Outcomes(NamedTuple):
    """One half's images of one run: which they are, and whether each was classified rightly."""

    items: list[str]
    adapted: np.ndarray  # (n,) bool
    zero_shot: np.ndarray  # (n,) bool


def paired_gains(runs: Sequence[dict[str, Outcomes]], replicates: int = REPLICATES) -> dict[str, dict[str, float]]:
    """Gain over zero-shot in base and novel accuracy and in their harmonic mean: mean, and 95% interval (low, high).

    `runs` holds base and novel outcomes, one pair a seed, on the same images in the same order (UserError otherwise).
    The harmonic mean is that of the seed means. Percentile bootstrap (Efron and Tibshirani, 1993): every replicate
    draws images within each half, the same for adapter and zero-shot and for all seeds, and draws seeds where there
    are several; so the interval covers the choice of test images and of few-shot samples. Deterministic.
    """
    right = {half: _stack([run[half] for run in runs]) for half in HALVES}
    point = _gains({half: one.mean(-1, keepdims=True) for half, one in right.items()}, np.ones((1, len(runs))))
    draws = [_gains(*resampled) for resampled in _resample(right, len(runs), replicates)]
    low, high = np.percentile(np.concatenate(draws, 1), [2.5, 97.5], axis=1)
    names = (*HALVES, "harmonic_mean")
    return {
        name: {"mean": float(point[i, 0]), "low": float(low[i]), "high": float(high[i])} for i, name in enumerate(names)
    }


def _stack(runs: list[Outcomes]) -> np.ndarray:
    """Correctness (2, S, n) of adapter and zero-shot."""
    if any(run.items != runs[0].items for run in runs):
        raise UserError("the runs of different seeds were tested on different images; run `mmrl evaluate` for all")
    return np.array([[run.adapted for run in runs], [run.zero_shot for run in runs]], dtype=np.float32)


def _resample(right: dict[str, np.ndarray], seeds: int, replicates: int) -> Iterator[tuple[dict, np.ndarray]]:
    """Per chunk of R replicates: each half's accuracies (2, S, R), and how often each seed was drawn (R, S)."""
    rng = np.random.default_rng(0)
    for start in range(0, replicates, CHUNK):
        size, accuracies = min(CHUNK, replicates - start), {}
        for half, one in right.items():
            n = one.shape[-1]
            counts = rng.multinomial(n, np.full(n, 1 / n), size).astype(np.float32)  # (R, n)
            accuracies[half] = one @ counts.T / n
        yield accuracies, rng.multinomial(seeds, np.full(seeds, 1 / seeds), size)


def _gains(accuracies: dict[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Adapter minus zero-shot (3, R) from accuracies (2, S, R) and seeds' weights (R, S): base, novel, harmonic."""
    shares = weights.T / weights.sum(1)  # (S, R)
    base, novel = ((accuracies[half] * shares).sum(1) for half in HALVES)  # (2, R)
    total = base + novel
    harmonic = np.divide(2 * base * novel, total, out=np.zeros_like(total), where=total > 0)
    return np.stack([value[0] - value[1] for value in (base, novel, harmonic)])
