"""Prefect artifacts of a run: the results, the champions, links to MLflow's runs, and where the report is."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.orchestration.up_to_date import Adapted
from flows.project import paths
from flows.report.tables import markdown
from flows.settings.params import Params
from flows.tracking.redaction import first_line, printable
from flows.tracking.store import connect, store_uri
from mmrl_core.files import read_json


def publish(params: Params, adapted: Adapted, warn: Callable[[str], object]) -> None:
    """Create the artifact `results`, and for every model on an MLflow server one of its name with a link to its run.

    What cannot be published is said to `warn`; the others are published all the same.
    """
    uri, lines = store_uri(params), [adapted.summary, ""]
    if paths.SUMMARY.exists():
        results = read_json(paths.SUMMARY, made_by="mmrl summarize")
        lines += [markdown(results["rows"] + results["averages"]), "", f"Report: `{_lasting_report()}`", ""]
    lines += [f"- {line}" for line in adapted.champions]
    lines += [f"- decision: {decision.decided}" for decision in adapted.promoted.values()]
    for name, version in ((model.name, model.version) for model in adapted.registered.values()):
        link = None
        try:
            if link := _training_run(uri, name, version):
                create_link_artifact(link, link_text=f"{name} version {version}", key=artifact_key(name))
        except Exception as error:
            warn(f"no link from Prefect to the training run of {name} version {version}: {first_line(error, uri)}")
        lines.append(f"- version {version} of `{name}`: {f'[training run]({link})' if link else 'see MLflow'}")
    lines += ["", f"MLflow: `mlflow ui --backend-store-uri {printable(uri)}`"]
    create_markdown_artifact("\n".join(lines), key="results", description="Results of the matrix")


def artifact_key(name: str) -> str:
    """The key of an artifact about `name`: itself where Prefect takes it, which are lower case letters, digits and
    dashes; else what is like it, with the start of its digest, so that no two names share one."""
    if re.fullmatch(r"[a-z0-9-]+", name):
        return name
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _lasting_report() -> Path:
    """Where the report is after the run: that of a worktree is copied to the run's folder of logs."""
    logs = paths.STATE / "logs"
    if not logs.is_symlink():
        return paths.REPORT.absolute()
    if paths.CHAMPION.exists():
        shutil.copy(paths.CHAMPION, logs.resolve())
    return Path(shutil.copy(paths.REPORT, logs.resolve()))


def _training_run(uri: str, name: str, version: int) -> str | None:
    """The page of the run that trained a version; None where the store has no server or the version no run."""
    if not uri.startswith("http"):
        return None
    client = connect(uri)
    run = client.get_model_version(name, str(version)).run_id
    return f"{uri}/#/experiments/{client.get_run(run).info.experiment_id}/runs/{run}" if run else None
