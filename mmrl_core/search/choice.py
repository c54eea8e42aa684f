"""Which trial of a search is chosen. Plain numbers.

A search is a lottery among settings that its few images cannot tell apart, and who takes the winner takes its luck. The
rule is the one-standard-error rule (Breiman, Friedman, Olshen and Stone, 1984, section 3.4.3) on paired differences:
among trials that are not told from the best, the one that changes the frozen model least. That is the largest
regularisation, of equals the smaller learning rate, of these the one nearer to the published values, then the first.

How good a trial is is not its own mean alone: a Gaussian process over the space, whose noise is the means' standard
error, gives its posterior mean, so that a lucky trial among mediocre neighbours counts for less.
"""

import math
from collections.abc import Callable
from statistics import mean, variance
from typing import Any

import numpy as np

from mmrl_core.rounding import SCORE, at_most, first_of_best
from mmrl_core.search.comparison import furthest, paired_errors
from mmrl_core.search.trial import Objective, Space, Trial, TrialSettings

LENGTH = 0.5  # of the process, in a space whose every dimension is 1 wide: half of it
ORDERS: dict[str, int] = {"adapter.reg_weight": -1, "train.lr": 1}  # which way a setting changes the model less


def choose(trials: list[Trial], objective: Objective, published: TrialSettings, space: Space) -> Trial | None:
    """The trial that changes the frozen model least among those that saw every partition and are not told from the
    best of them. None where no trial saw a partition."""
    whole = furthest(trials)
    if not whole:
        return None
    smooth = {id(trial): value for trial, value in zip(trials, smoothed(trials, objective, space), strict=True)}
    best = first_of_best(whole, lambda trial: smooth[id(trial)])
    errors = paired_errors(best, whole, objective)
    behind = [smooth[id(best)] - smooth[id(trial)] for trial in whole]
    tied = [
        trial
        for trial, far, error in zip(whole, behind, errors, strict=True)
        if trial is best or at_most(far, SCORE + (error.se if error else 0))
    ]
    return min(tied, key=lambda trial: _change(trial["params"], published))  # of equals the first


def _change(params: TrialSettings, published: TrialSettings) -> tuple[float, ...]:
    """Settings that change the frozen model less are smaller."""
    kept = sum(params.get(key) == value for key, value in published.items())
    return (*(sign * float(params.get(key, 0)) for key, sign in ORDERS.items()), -kept)


def smoothed(trials: list[Trial], objective: Objective, space: Space) -> list[float]:
    """Every trial's objective as its neighbours in the space see it, relative to the mean of those that saw every
    partition; -inf for a trial that saw none.

    Posterior mean of a Gaussian process with a squared-exponential kernel of fixed LENGTH. Its variance is that of the
    trials' means, less their noise. Trials that were ended early are compared on what they saw.
    """
    seen = [trial for trial in trials if trial["scores"] and trial.get("state") not in ("failed", "lost")]
    if not seen:
        return [-math.inf] * len(trials)
    means, noise = _relative(seen, objective)
    places = np.array([_place(trial["params"], space) for trial in seen])
    distance = ((places[:, None] - places[None]) ** 2).sum(-1)
    spread = max(float(np.var(means)) - float(noise.mean()), float(noise.mean()) / len(seen))
    kernel = spread * np.exp(-distance / (2 * LENGTH**2))
    level = float(np.average(means, weights=1 / (spread + noise)))
    posterior = level + kernel @ np.linalg.solve(kernel + np.diag(noise), means - level)
    values = {id(trial): float(value) for trial, value in zip(seen, posterior, strict=True)}
    return [values.get(id(trial), -math.inf) for trial in trials]


def _relative(trials: list[Trial], objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """Each trial's mean over the partitions that it saw, less those partitions' means over the whole trials; and the
    variance of that mean, whose spread over partitions is the median trial's."""
    whole = furthest(trials)
    parts = [mean(trial["scores"][index][objective] for trial in whole) for index in range(len(whole[0]["scores"]))]
    rows = [[one[objective] - part for one, part in zip(trial["scores"], parts, strict=False)] for trial in trials]
    spreads = [variance(row) for row in rows if len(row) > 1]
    spread = max(float(np.median(spreads)) if spreads else 0.0, SCORE**2)
    return np.array([mean(row) for row in rows]), np.array([spread / len(row) for row in rows])


def _place(params: TrialSettings, space: Space) -> list[float]:
    """Where in the space, each dimension from 0 to 1."""
    return [_scaled(params[key], *next(iter(one.items()))) for key, one in space.items()]


def _scaled(value: Any, kind: str, values: list[Any]) -> float:
    if kind == "choice":
        ordered = sorted(values)
        return ordered.index(value) / max(1, len(ordered) - 1)
    scale: Callable[[float], float] = math.log if kind == "loguniform" else float
    low, high = map(scale, values)
    return (scale(value) - low) / (high - low)
