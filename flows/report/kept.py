"""Results that another run can be compared with: what is read of a summary.json, and the same kept with its machine."""

from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from flows.project.machine import Machine, this_machine
from flows.project.metrics import Share
from flows.report.tables import METHOD_TITLES, title
from mmrl_core.errors import Damaged, UserError
from mmrl_core.files import read_json, write_json

SETTINGS = ("protocol", "preset", "backbone")
HARMONIC, HARMONIC_STD = "harmonic_mean", "harmonic_mean_std"

Change = Annotated[float, Field(ge=-1, le=1)]


class Spread(TypedDict):
    mean: Share
    std: Share


class Gain(TypedDict):
    mean: Change
    low: Change
    high: Change


class Row(TypedDict):
    """What is read of a row of results; `gain` has every part, and the harmonic mean where there is one."""

    source: str
    target: str
    shots: int
    method: str
    seeds: list[int]
    accuracy: dict[str, Spread]
    harmonic_mean: NotRequired[Share]
    harmonic_mean_std: NotRequired[Share]
    ece: dict[str, Share]
    gain: NotRequired[dict[str, Gain]]


class Choice(TypedDict):
    params: dict[str, Any]


class Search(TypedDict):
    """`choice` is missing where nothing was searched."""

    dataset: str
    method: str
    template: str
    choice: NotRequired[Choice]


class Results(TypedDict):
    """What is read of a summary.json; one that was kept also says of which machine it is."""

    protocol: str
    preset: str
    backbone: str
    rows: list[Row]
    searches: list[Search]
    machine: NotRequired[Machine]


def keep(run: Path, out: Path) -> dict[str, Any]:
    """Write what is read of a run's results to `out`, with this machine's facts; gives what it wrote.

    Raises UserError where `out` is there and no such file.
    """
    if out.exists():
        read_results(out)
    results = read_results(run)
    kept = {
        **{name: results[name] for name in SETTINGS},
        "machine": this_machine(),
        "rows": results["rows"],
        "searches": [_of_search(search) for search in results["searches"]],
    }
    try:
        write_json(out, kept)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another path") from None
    return kept


def _of_search(search: dict) -> dict[str, Any]:
    choice = {"choice": {"params": search["choice"]["params"]}} if "choice" in search else {}
    return {**{name: search[name] for name in ("dataset", "method", "template")}, **choice}


def read_results(path: Path, made_by: str = "mmrl summarize") -> dict[str, Any]:
    """Raises as `read_json`, and Damaged without rows, and for rows that lack figures or are of several parts."""
    results = read_json(path, made_by=made_by, keys=(*SETTINGS, "rows", "searches"), shape=Results)
    parts = results["rows"][0]["accuracy"].keys() if results["rows"] else set()
    if not parts:
        raise Damaged(f"{path} has no figures; run `{made_by}` again")
    for row in results["rows"]:
        if problem := _problem(row, parts):
            raise Damaged(f"{path}: {name_of(row)} has {problem}; run `{made_by}` again")
    return results


def _problem(row: dict, parts: Set[str]) -> str | None:
    if row["accuracy"].keys() != parts or row["ece"].keys() != parts:
        return "other parts than the first row"
    if (HARMONIC in row) != (HARMONIC_STD in row):
        return "a harmonic mean without its deviation, or the reverse"
    if "gain" in row and not means(row).keys() <= row["gain"].keys():
        return "not every gain"
    return None


def means(row: dict) -> dict[str, float]:
    """A row's figures by name: the accuracy in each part, and the harmonic mean where there is one."""
    parts = {part: value["mean"] for part, value in row["accuracy"].items()}
    return {**parts, HARMONIC: row[HARMONIC]} if HARMONIC in row else parts


def deviation(row: dict, part: str) -> float:
    """A figure's standard deviation over the seeds."""
    return row[HARMONIC_STD] if part == HARMONIC else row["accuracy"][part]["std"]


def name_of(row: dict) -> str:
    return f"{title(row)}, {row['shots']} shots, {method_of(row)}"


def method_of(row: dict) -> str:
    return METHOD_TITLES.get(row["method"], row["method"])
