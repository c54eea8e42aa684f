"""The history of a registered model: every decision about its aliases as an MLflow run that nothing changes later.

Runs lie in the experiment `promotions`, with the decision as tags, decision.md for people, and outcomes.parquet, the
classes that champion and challenger predict for every image.

A decision is a journal's entry: `record` writes a draft, `intend` adds in one request what is to be done, and `close`
ends the run once it is done. Of a process that is killed a draft is left, which did nothing, or an intent, which
whoever comes next carries out (promotion.py).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from typing_extensions import TypedDict

from flows.tracking.store import experiment_id, transfer
from mmrl_core.errors import UserError
from mmrl_core.evaluation.gate import Decision
from mmrl_core.files import wrong_entry
from mmrl_core.parsing import parse_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "promotions"
INTENT, DRAFT = "intent", ""  # the tag, and its value before there is one
LONGEST = 1000  # characters of a reason: MLflow cuts a tag's value off at 8000


class Intent(TypedDict):
    """What a decision does: tags by version, then aliases (None: removed). `alias` is the one that it is about, which
    has to be at `before` or there already; `adapters` are the sha256 of the versions that it names."""

    alias: str
    before: int | None
    aliases: dict[str, int | None]
    tags: dict[str, dict[str, str]]
    adapters: dict[str, str]


class Entry(NamedTuple):
    """What a decision is about: a version, and the champion before it."""

    name: str
    version: int
    champion: int | None
    decision: Decision


class PastDecision(NamedTuple):
    """One line of the history; `at` is in milliseconds since 1970, `moved` whether the alias moved."""

    run_id: str
    at: int
    version: int
    champion: int | None
    verdict: str
    reasons: list[str]
    moved: bool


def record(client: "MlflowClient", uri: str, entry: Entry, alias: str, rows: list[dict[str, Any]]) -> str:
    """Log a decision about an alias as a draft, with its rows image by image; the run's id."""
    name, version, champion, decision = entry
    tags = {
        "model": name,
        "alias": alias,
        "version": str(version),
        "champion": str(champion or ""),
        "verdict": decision.verdict,
        "reasons": json.dumps([shortened(reason) for reason in decision.reasons], ensure_ascii=False),
        INTENT: DRAFT,
    }
    title = f"{name} {version} against {champion}" if champion else f"{name} {version}"
    experiment = experiment_id(client, uri, EXPERIMENT)
    run_id = client.create_run(experiment, run_name=f"{title}: {decision.verdict}", tags=tags).info.run_id
    for figure, value in decision.figures.items():
        client.log_metric(run_id, figure, float(value))
    with TemporaryDirectory() as folder:
        (Path(folder) / "decision.md").write_text(markdown(title, decision))
        if rows:
            _write_rows(Path(folder) / "outcomes.parquet", rows)
        with transfer(client):
            client.log_artifacts(run_id, folder)
    return run_id


def intend(client: "MlflowClient", run_id: str, intent: Intent) -> None:
    """Write down what a recorded decision does: from here on it is finished, by this process or the next."""
    client.set_tag(run_id, INTENT, json.dumps(intent, ensure_ascii=False))


def close(client: "MlflowClient", run_id: str, moved: bool, *, done: bool = True) -> None:
    """End the run of a decision, with whether the alias moved; KILLED where what it intended was not `done`."""
    client.set_tag(run_id, "moved", str(moved).lower())
    client.set_terminated(run_id, "FINISHED" if done else "KILLED")


def unfinished(client: "MlflowClient", uri: str, name: str) -> Iterator[tuple[PastDecision, Intent | None]]:
    """Decisions about a model that were cut off, the first one first, and what they intended; drafts are deleted.

    One that an older release wrote has None: it moved the aliases without an intent.
    """
    for run in _runs(client, uri, name, " and attributes.status = 'RUNNING'"):
        written = run.data.tags.get(INTENT)
        if written == DRAFT:
            client.delete_run(run.info.run_id)
        else:
            yield _past_decision(run), _intent(run, written) if written else None


def is_open(client: "MlflowClient", uri: str, name: str, verdict: str) -> bool:
    """Whether a decision with this verdict was cut off, or is being carried out now."""
    open_runs = _runs(client, uri, name, " and attributes.status = 'RUNNING'")
    return any(run.data.tags.get("verdict") == verdict for run in open_runs)


def history(client: "MlflowClient", uri: str, name: str) -> list[PastDecision]:
    """Every decision about a model, the first one first."""
    return [_past_decision(run) for run in _runs(client, uri, name) if run.data.tags.get(INTENT) != DRAFT]


def last_champion(client: "MlflowClient", uri: str, name: str, alias: str) -> int | None:
    """The version that the history says the alias of a model was moved to last, since the model was created."""
    since = client.get_registered_model(name).creation_timestamp
    moves = [run for run in _runs(client, uri, name) if run.data.tags.get("moved") == "true"]
    of_alias = [
        run for run in moves if run.info.start_time >= since and run.data.tags.get("alias", "champion") == alias
    ]
    return _past_decision(of_alias[-1]).version if of_alias else None


def shortened(reason: str) -> str:
    """A reason of a length that is kept whole."""
    return reason if len(reason) <= LONGEST else f"{reason[: LONGEST - 4]} ..."


def _runs(client: "MlflowClient", uri: str, name: str, more: str = "") -> "list[Run]":
    experiment = experiment_id(client, uri, EXPERIMENT)
    runs: list[Run] = []
    token: str | None = None
    while token != "":
        where = f"tags.model = '{name}'{more}"
        page = client.search_runs([experiment], where, order_by=["start_time ASC"], page_token=token)
        runs, token = runs + list(page), page.token or ""
    return runs


def _past_decision(run: "Run") -> PastDecision:
    """Raises UserError where somebody changed its tags to what no decision has."""
    tags = run.data.tags
    try:
        champion = int(tags["champion"]) if tags["champion"] else None
        reasons = parse_json(tags["reasons"])
        return PastDecision(run.info.run_id, run.info.start_time, int(tags["version"]), champion, tags["verdict"],
                            [*map(_text, reasons)], tags.get("moved") == "true")  # fmt: skip
    except (LookupError, TypeError, ValueError) as error:
        raise _altered(run, str(error)) from None


def _intent(run: "Run", written: str) -> Intent:
    """What a decision was to do. Raises as `_past_decision`."""
    try:
        intent = parse_json(written)
        problem = wrong_entry(intent, Intent) or next(
            (f"no {key}" for key in Intent.__annotations__ if key not in intent), None
        )
    except ValueError as error:
        problem = str(error)
    if problem:
        raise _altered(run, problem)
    return cast(Intent, intent)


def _altered(run: "Run", problem: str) -> UserError:
    return UserError(
        f"run {run.info.run_id} of the experiment {EXPERIMENT} is not what was written down of a decision ({problem}); "
        "put its tags right in MLflow, or delete it"
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def markdown(title: str, decision: Decision) -> str:
    """The decision for people: the verdict, a line for every reason, a table of the figures."""
    lines = [f"# {title}: {decision.verdict}", "", *(f"- {reason}" for reason in decision.reasons)]
    if decision.figures:
        rows = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in decision.figures.items()]
        lines += ["", "| figure | value |", "| --- | ---: |", *rows]
    return "\n".join(lines) + "\n"


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
