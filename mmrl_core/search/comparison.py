"""How trials of a search compare: means and standard errors over partitions, the race. Plain numbers.

Scores that differ by no more than SCORE are equal; a race looks closer.
"""

from statistics import NormalDist, mean, median, stdev, variance
from typing import NamedTuple, cast, get_args

from mmrl_core.rounding import ROUNDED, SCORE, at_most, first_of_best
from mmrl_core.search.trial import Cost, Lead, Means, Objective, Record, Scores, Trial, TrialSettings

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
COSTS: tuple[Cost, ...] = get_args(Cost)
ROUND = 2  # partitions that every trial of a race sees; those still in it see twice as many, and so on
LEVEL = 0.2  # how often, at each look, a trial that is as good as the best one may be ended
PRIOR = 4  # degrees of freedom that the trials' common spread counts for, if there are as many


def overall(scores: list[Scores]) -> Means:
    """Mean of every score over the partitions, and the standard error of both objectives."""
    means = {name: mean(one[name] for one in scores) for name in scores[0] if name != "losses"}
    errors = {f"{name}_se": standard_error([one[name] for one in scores]) for name in OBJECTIVES}
    return cast(Means, {**means, **errors})


def compared(record: Record, partitions: int | None = None) -> Trial:
    """The ledger's record of a trial as trials are compared, of its first `partitions` alone where that is given."""
    scores = record["scores"][:partitions]
    means: Means = overall(scores) if scores else {}
    if record["state"] in ("failed", "lost"):
        return {"params": record["params"], "state": record["state"], "failure": record["failure"], **means,
                "scores": scores}  # fmt: skip
    return {"params": record["params"], "state": record["state"], **means, "scores": scores}


def standard_error(values: list[float]) -> float:
    """Of the mean; 0 for a single value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _best(trials: list[Trial], objective: Objective) -> Trial:
    return first_of_best(trials, lambda trial: trial[objective])


def furthest(trials: list[Trial]) -> list[Trial]:
    """The trials that saw as many partitions as any; none of those that failed or saw none."""
    sound = [trial for trial in trials if trial.get("state") not in ("failed", "lost")]
    most = max((len(trial["scores"]) for trial in sound), default=0)
    return [trial for trial in sound if most and len(trial["scores"]) == most]


def comparisons(
    trials: list[Trial], chosen: Trial, objective: Objective, published: TrialSettings
) -> dict[str, Lead | None]:
    """How far the chosen trial is ahead of the published setting and of the best other one.

    None where there is no such trial.
    """
    others = [trial for trial in furthest(trials) if trial["params"] != chosen["params"]]
    runner_up = _best(others, objective) if others else None
    start = next((trial for trial in trials if published and trial["params"] == published and trial["scores"]), None)
    return {
        "published": _ahead(trials, chosen, start, objective),
        "runner_up": _ahead(trials, chosen, runner_up, objective),
    }


def _ahead(trials: list[Trial], chosen: Trial, other: Trial | None, objective: Objective) -> Lead | None:
    if other is None:
        return None
    ahead = differences(chosen["scores"], other["scores"], objective)
    return {"trial": trials.index(other), "difference": mean(ahead), "se": standard_error(ahead)}


def pareto_front(trials: list[Trial], objective: Objective, cost: Cost) -> list[int]:
    """Indices of the trials that no other one beats in both: a higher objective, a lower cost. By ascending cost."""
    whole = furthest(trials)
    front: list[Trial] = []
    for price in sorted({trial[cost] for trial in whole}):
        best = _best([trial for trial in whole if trial[cost] == price], objective)
        if not front or not at_most(best[objective], front[-1][objective] + SCORE):
            front.append(best)
    return [trials.index(trial) for trial in front]


def differences(ahead: list[Scores], behind: list[Scores], objective: Objective) -> list[float]:
    """In the objective, on the partitions that both saw."""
    return [one[objective] - two[objective] for one, two in zip(ahead, behind, strict=False)]


def looks(partitions: int) -> list[int]:
    """After how many partitions the trials of a race are compared; the last is all of them."""
    counts = [ROUND]
    while counts[-1] < partitions:
        counts.append(2 * counts[-1])
    return [*counts[:-1], partitions]


def still_in(trials: list[Trial], objective: Objective) -> list[Trial]:
    """Those of equally far trials that are not clearly behind the best of them, by a paired t-test of level LEVEL.

    Of two trials that are equally good a look so ends the one that is behind in twice LEVEL of all cases. Pairs are the
    partitions.
    """
    best = first_of_best(trials, lambda trial: trial[objective], within=ROUNDED)
    errors = paired_errors(best, trials, objective)
    behind = [
        id(trial)
        for trial, error in zip(trials, errors, strict=True)
        if error is not None and best[objective] - trial[objective] > _t(error.freedom) * error.se + ROUNDED
    ]
    return [trial for trial in trials if id(trial) not in behind]


class PairedError(NamedTuple):
    """The standard error of a mean paired difference, and its degrees of freedom."""

    se: float
    freedom: int


def paired_errors(best: Trial, trials: list[Trial], objective: Objective) -> list[PairedError | None]:
    """Of each trial's mean difference from the best of equally far ones; None for the best itself, and where one
    partition alone was seen.

    With few partitions a trial's own spread says next to nothing, so it is moderated (Smyth, 2004): mixed, by degrees
    of freedom, with the median spread of all trials about the best.
    """
    n = len(best["scores"])
    spreads = [None if trial is best or n < 2 else variance(differences(best["scores"], trial["scores"], objective))
               for trial in trials]  # fmt: skip
    known = [spread for spread in spreads if spread is not None]
    if not known:
        return [None] * len(trials)
    common, own, prior = median(known), n - 1, min(PRIOR, (len(known) - 1) * (n - 1))
    return [
        None if spread is None else PairedError((_mixed(spread, own, common, prior) / n) ** 0.5, prior + own)
        for spread in spreads
    ]


def _mixed(spread: float, own: int, common: float, prior: int) -> float:
    return (prior * common + own * spread) / (prior + own)


def _t(freedom: int) -> float:
    """Student's t beyond which LEVEL of it lies, to 2% (Cornish and Fisher's expansion about the normal)."""
    z = NormalDist().inv_cdf(1 - LEVEL)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
