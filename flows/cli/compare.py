"""`mmrl compare`: whether a run agrees with another one within noise."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import PATH, AsJson, show, text_table
from flows.project import paths
from mmrl_core.errors import Failed

if TYPE_CHECKING:
    from flows.report.agreement import Figure

HEADER = ["dataset", "shots", "method", "figure", "there (gain)", "here (gain)", "difference", "noise", "agrees"]
MOST = 5  # figures that the error names; the table has all


def compare(
    file: Annotated[Path, typer.Argument(help="Results to compare with: a summary.json, or kept ones.", **PATH)],
    other: Annotated[Path, typer.Argument(help="The results in question.", **PATH)] = paths.SUMMARY,
    keep: Annotated[
        bool, typer.Option("--keep", help="Instead: write the results in question to FILE, with this machine's facts.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """See whether two runs of the same settings agree within noise; exit 1 unless they do."""
    from flows.report.agreement import compare as compared

    if keep:
        _keep(file, other, json_)
        return
    found = compared(file, other)
    only = {str(file): found.only_reference, str(other): found.only_run}
    if json_:
        figures = [{**one._asdict(), "difference": one.difference, "agrees": one.agrees} for one in found.figures]
        rows = {"other_choices": found.other_choices, "only": only}
        print(json.dumps({"agrees": not found.apart, "figures": figures, **rows}))
    else:
        print(text_table(HEADER, map(_cells, found.figures)))
        print("".join(f"the search chose other settings: {row}\n" for row in found.other_choices), end="")
        print("".join(f"only in {name}: {row}\n" for name, rows in only.items() for row in rows), end="")
    if found.apart:
        raise Failed(f"{other} does not agree with {file}: {_apart(found.apart)}")
    if not json_:
        print(f"{other} agrees with {file} in all {len(found.figures)} figures")


def _keep(file: Path, other: Path, as_json: bool) -> None:
    from flows.project.machine import in_words
    from flows.report.kept import keep
    from flows.report.tables import markdown

    kept = keep(other, file)
    show(kept if as_json else {"table": markdown(kept["rows"])}, as_json, f"{file} is of {in_words(kept['machine'])}")


def _cells(figure: "Figure") -> list[str]:
    shown = [_shown(figure.reference, figure.reference_gain), _shown(figure.run, figure.run_gain)]
    apart = [f"{100 * figure.difference:+z.2f}", f"{100 * figure.bound:.2f}", "yes" if figure.agrees else "no"]
    return [figure.dataset, str(figure.shots), figure.method, _part(figure), *shown, *apart]


def _shown(value: float, gain: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if gain is None else f" ({100 * gain:+z.1f})")


def _apart(figures: list["Figure"]) -> str:
    named = [
        f"{one.dataset}, {one.shots} shots, {one.method}: {_part(one)} {_shown(one.run, one.run_gain)} against "
        f"{_shown(one.reference, one.reference_gain)}, where noise is {100 * one.bound:.1f}" for one in figures[:MOST]
    ]  # fmt: skip
    more = f"; and {len(figures) - MOST} more" if len(figures) > MOST else ""
    return "; ".join(named) + more


def _part(figure: "Figure") -> str:
    return figure.part.replace("_", " ")
