"""Paired differences between methods: each against the linear probe on trained classes, and against MMRL over all."""

from collections.abc import Mapping
from typing import Any

from flows.report.tables import METHOD_TITLES, Key, in_order, interval, named, title
from mmrl_core.errors import UserError
from mmrl_core.evaluation.bootstrap import Outcomes, paired_differences

PROBE, OVERALL = "linear_probe", ("mmrl", "mmrlpp")  # of OVERALL the first that is there
EXPLAINED = """What a column's head names, minus the same of the method named there, in points, with the 95% interval of
the same paired bootstrap: both methods on the same images, seed by seed. Each interval stands by itself: where methods
do not differ, about one in twenty leaves out 0."""

Seeds = Mapping[int, dict[str, Outcomes]]  # a run's outcomes by part, by seed


def compare(outcomes: Mapping[Key, Seeds]) -> list[dict[str, Any]]:
    """A comparison for every method and each of its references: which, the seeds that both have, and "difference" by
    part as `paired_gains` gives it. Raises UserError where two were tested on different images."""
    found = []
    references = _references({method for *_, method in outcomes})
    for (source, target, shots, method), seeds in sorted(outcomes.items(), key=lambda run: in_order(run[0])):
        for reference in references:
            others = outcomes.get((source, target, shots, reference), {})
            common = sorted(seeds.keys() & others.keys())
            if reference != method and common:
                row = {"source": source, "target": target, "shots": shots, "method": method, "against": reference}
                difference = _difference(row, [seeds[seed] for seed in common], [others[seed] for seed in common])
                found.append({**row, "seeds": common, "difference": difference})
    return found


def _references(methods: set[str]) -> list[str]:
    overall = [name for name in OVERALL if name in methods]
    return [PROBE, *overall[:1]]


def _difference(row: dict, runs: list[dict[str, Outcomes]], others: list[dict[str, Outcomes]]) -> dict[str, Any]:
    try:
        return paired_differences(runs, others)
    except UserError as error:
        of = f"{METHOD_TITLES[row['method']]} against {METHOD_TITLES[row['against']]}"
        raise UserError(f"{title(row)}, {row['shots']} shots, {of}: {error}") from None


def table(comparisons: list[dict]) -> tuple[list[str], list[list[str]]]:
    """The columns, one a reference, and a line a method; no line where nothing was compared."""
    columns = {one["against"]: f"{_shown(_part(one))} against {METHOD_TITLES[one['against']]} [95%]"
               for one in sorted(comparisons, key=lambda one: one["against"] != PROBE)}  # fmt: skip
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for one in comparisons:
        lines.setdefault(tuple(named(one)), {})[one["against"]] = interval(one["difference"][_part(one)])
    cells = [[*names, *(values.get(against, "") for against in columns)] for names, values in lines.items()]
    return ["dataset", "shots", "method", *columns.values()], cells


def _part(comparison: dict) -> str:
    """Which part is shown: the trained classes' for the probe, which leaves others to zero-shot; else the whole."""
    parts = list(comparison["difference"])
    return parts[0] if comparison["against"] == PROBE else parts[-1]


def _shown(part: str) -> str:
    return "accuracy" if part == "all" else part.replace("_", " ")
