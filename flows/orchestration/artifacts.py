"""What Prefect's pages show of a run: the results, the champions, the ways to MLflow's runs and to the report."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.project import paths
from flows.report.tables import markdown
from flows.settings.params import Params
from flows.tracking.store import connect, redacted, store_uri
from mmrl_core.files import read_json


def publish(params: Params, summary: str, registered: Iterable[NamedTuple], promoted: Iterable[NamedTuple]) -> None:
    """The artifact `results`, and for every model on an MLflow server one with its name and a link to its run."""
    uri, lines = store_uri(params), [summary, ""]
    if paths.SUMMARY.exists():
        found = read_json(paths.SUMMARY, made_by="mmrl summarize")
        lines += [markdown(found["rows"] + found["averages"]), "", f"Report: `{_lasting_report()}`", ""]
    lines += [f"- champion: `{one.live}`; {one.decided}" for one in promoted]
    for one in registered:
        link = _training_run(uri, one)
        lines.append(f"- version {one.version} of `{one.name}`: {f'[training run]({link})' if link else 'see MLflow'}")
        if link:
            create_link_artifact(link, link_text=f"{one.name} version {one.version}", key=one.name.replace("_", "-"))
    lines += ["", f"MLflow: `mlflow ui --backend-store-uri {redacted(uri)}`"]
    create_markdown_artifact("\n".join(lines), key="results", description="Results of the matrix")


def _lasting_report() -> Path:
    """Where the report is found after the run: that of a worktree is copied to its folder of logs."""
    logs = paths.STATE / "logs"
    if not logs.is_symlink():
        return paths.REPORT.absolute()
    return Path(shutil.copy(paths.REPORT, logs.resolve()))


def _training_run(uri: str, version: NamedTuple) -> str | None:
    """The page of the run that trained a version; a store without a server has none."""
    if not uri.startswith("http"):
        return None
    client = connect(uri)
    run = client.get_model_version(version.name, str(version.version)).run_id
    return f"{uri}/#/experiments/{client.get_run(run).info.experiment_id}/runs/{run}" if run else None
