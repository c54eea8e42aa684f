"""Whether a run agrees within noise with another of the same settings, the reference.

Two machines add floats in another order. Trainings drift apart then, and the search may choose another of the settings
that it cannot tell apart.

- Figures without training (zero-shot) may differ by ROUNDING, an image or two of a few hundred.
- Gains over zero-shot may differ by z * sqrt(2) * se, with the standard error of the reference's interval, and z for
  LEVEL / m over the m gains that are compared (Bonferroni; Dunn, 1961): about LEVEL of the pairs of runs that differ by
  chance alone are told apart, in whatever figure. It is the test of two independent estimates (Schenker and Gentleman,
  2001), but that the run's own interval has no say: to scatter more than the reference is no excuse.
- That is for other test images and few-shot sets, which the two runs share. The room is for another choice of the
  search, which no spread over seeds shows. Where the choice is the same only drift is left, and DRIFT of it is allowed.
"""

from collections.abc import Iterable
from math import hypot, isclose, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from flows.report.kept import SETTINGS, deviation, means, method_of, name_of, read_results
from flows.report.tables import Key, title
from mmrl_core.errors import UserError
from mmrl_core.rounding import ROUNDED, at_most

LEVEL = 0.05
ROUNDING = 0.005
DRIFT = 0.25
HALF_WIDTH = NormalDist().inv_cdf(0.975)  # of a 95% interval, in standard errors


class Figure(NamedTuple):
    """One figure of both runs, fractions of 1, and by how much they may differ: in the gain, where there is one."""

    dataset: str  # or `digits to letters`
    shots: int
    method: str
    part: str
    reference: float
    run: float
    reference_gain: float | None
    run_gain: float | None
    bound: float

    @property
    def difference(self) -> float:
        if self.reference_gain is None or self.run_gain is None:
            return self.run - self.reference
        return self.run_gain - self.reference_gain

    @property
    def agrees(self) -> bool:
        return at_most(abs(self.difference), self.bound)


class Agreement(NamedTuple):
    """All figures that both have, and rows by name: of other choices of the search, and those that only one has."""

    figures: list[Figure]
    other_choices: list[str]
    only_reference: list[str]
    only_run: list[str]

    @property
    def apart(self) -> list[Figure]:
        """The figures that do not agree."""
        return [figure for figure in self.figures if not figure.agrees]


class _Pair(NamedTuple):
    """A row of the reference and of the run."""

    reference: dict
    run: dict
    same_choice: bool


def compare(reference: Path, run: Path) -> Agreement:
    """Raises UserError where a file cannot be read, and where the two are no runs of the same settings."""
    first, second = read_results(reference, f"mmrl compare {reference} --keep"), read_results(run)
    for name in SETTINGS:
        if first[name] != second[name]:
            raise _others(reference, run, name, first[name], second[name])
    there, here = _by_key(first["rows"]), _by_key(second["rows"])
    choices = _choices(first), _choices(second)
    pairs = [_Pair(row, here[key], _is_same_choice(key, *choices)) for key, row in there.items() if key in here]
    if not pairs:
        raise UserError(f"{run} and {reference} have no row of the same dataset, shots and method; nothing to compare")
    for one, other, _ in pairs:
        if one["seeds"] != other["seeds"]:
            raise _others(reference, run, f"seeds of {name_of(one)}", one["seeds"], other["seeds"])
        if means(one).keys() != means(other).keys():
            raise _others(reference, run, f"parts of {name_of(one)}", [*means(one)], [*means(other)])
    return Agreement(
        _figures(pairs),
        [name_of(pair.reference) for pair in pairs if not pair.same_choice],
        [name_of(row) for key, row in there.items() if key not in here],
        [name_of(row) for key, row in here.items() if key not in there],
    )


def _others(reference: Path, run: Path, name: str, first: object, second: object) -> UserError:
    return UserError(
        f"{run} and {reference} are of other settings: {name} {second} and {first}; compare runs of the same ones"
    )


def _by_key(rows: Iterable[dict]) -> dict[Key, dict]:
    return {(row["source"], row["target"], row["shots"], row["method"]): row for row in rows}


def _choices(results: dict) -> dict[tuple[str, str], dict[str, Any]]:
    """What the searches chose, by dataset and method."""
    return {
        (search["dataset"], search["method"]): search["choice"]["params"]
        for search in results["searches"]
        if "choice" in search
    }


def _is_same_choice(key: Key, first: dict, second: dict) -> bool:
    """Whether both runs trained a row with the same settings; `mmrl+probe` is of the search of `mmrl`."""
    source, _, _, method = key
    one, other = (choices.get((source, method.partition("+")[0]), {}) for choices in (first, second))
    return one.keys() == other.keys() and all(_is_equal(value, other[name]) for name, value in one.items())


def _is_equal(first: object, second: object) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return isclose(first, second, rel_tol=ROUNDED)
    return first == second


def _figures(pairs: list[_Pair]) -> list[Figure]:
    gains = sum(len(means(pair.reference)) for pair in pairs if "gain" in pair.reference)
    z = NormalDist().inv_cdf(1 - LEVEL / 2 / max(gains, 1))
    return [
        Figure(
            title(one), one["shots"], method_of(one), part, value, means(other)[part], _gain(one, part),
            _gain(other, part), max(ROUNDING, (DRIFT if same else 1) * z * sqrt(2) * standard_error(one, part)),
        )
        for one, other, same in pairs for part, value in means(one).items()
    ]  # fmt: skip


def _gain(row: dict, part: str) -> float | None:
    return row["gain"][part]["mean"] if "gain" in row else None


def standard_error(row: dict, part: str) -> float:
    """Of a gain over zero-shot, from its interval; 0 where there is none.

    A bootstrap of S seeds shows (S - 1) / S of what they add to the variance, std^2 / S; the rest is added.
    """
    if "gain" not in row:
        return 0.0
    gain = row["gain"][part]
    return hypot((gain["high"] - gain["low"]) / 2 / HALF_WIDTH, deviation(row, part) / max(len(row["seeds"]), 1))
