"""The history of a registered model: every decision about its aliases as an MLflow run that nothing changes later.

Runs lie in the experiment `promotions`, with the decision as tags, decision.md for people, and outcomes.parquet, the
classes that champion and challenger predict for every image. A run that is still RUNNING was cut off before the alias
moved.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.tracking.store import experiment_id
from mmrl_core.evaluation.gate import Decision

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "promotions"


class PastDecision(NamedTuple):
    """One line of the history; `at` is in milliseconds since 1970, `moved` whether the alias moved."""

    run_id: str
    at: int
    version: int
    champion: int | None
    verdict: str
    reasons: list[str]
    moved: bool


def record(
    client: "MlflowClient",
    uri: str,
    name: str,
    version: int,
    champion: int | None,
    decision: Decision,
    rows: list[dict[str, Any]],
) -> str:
    """Log a decision as a run that is still RUNNING, before any alias moves; the run's id."""
    experiment = experiment_id(client, uri, EXPERIMENT)
    tags = {
        "model": name,
        "version": str(version),
        "champion": str(champion or ""),
        "verdict": decision.verdict,
        "reasons": json.dumps(decision.reasons),
    }
    title = f"{name} {version} against {champion}" if champion else f"{name} {version}"
    run_id = client.create_run(experiment, run_name=f"{title}: {decision.verdict}", tags=tags).info.run_id
    for figure, value in decision.figures.items():
        client.log_metric(run_id, figure, float(value))
    with TemporaryDirectory() as folder:
        (Path(folder) / "decision.md").write_text(markdown(title, decision))
        if rows:
            _write_rows(Path(folder) / "outcomes.parquet", rows)
        client.log_artifacts(run_id, folder)
    return run_id


def close(client: "MlflowClient", run_id: str, moved: bool) -> None:
    """End the run of a decision, with whether the alias moved."""
    client.set_tag(run_id, "moved", str(moved).lower())
    client.set_terminated(run_id, "FINISHED")


def history(client: "MlflowClient", uri: str, name: str) -> list[PastDecision]:
    """Every decision about a model, the first one first."""
    experiment = experiment_id(client, uri, EXPERIMENT)
    runs: list[Run] = []
    token: str | None = None
    while token != "":
        page = client.search_runs([experiment], f"tags.model = '{name}'", order_by=["start_time ASC"], page_token=token)
        runs, token = runs + list(page), page.token or ""
    return [_past_decision(run) for run in runs]


def _past_decision(run: "Run") -> PastDecision:
    tags = run.data.tags
    champion = int(tags["champion"]) if tags["champion"] else None
    return PastDecision(run.info.run_id, run.info.start_time, int(tags["version"]), champion, tags["verdict"],
                 json.loads(tags["reasons"]), tags.get("moved") == "true")  # fmt: skip


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
