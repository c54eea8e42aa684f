"""A search in MLflow: one parent run, one child a trial. Told from what is there already, so that a resume adds to it.

Children are written when their trial has ended, the parent is open while the search runs. A store that fails costs one
warning; what it missed is written when the search ends, if it answers again by then.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.project.outputs import is_held
from flows.project.paths import STATE, searches
from flows.settings.params import Params
from flows.tracking.run import flatten, git_commit
from flows.tracking.store import connect, experiment_id, store_uri, why
from flows.tuning.ledger import FAILED, LOST, trial_key

PARENT, SEARCH, TRIAL = "mlflow.parentRunId", "search.id", "search.trial"
MANY = 1000  # runs a query
UNTRACKED = "untracked"  # a mark in the search's folder: MLflow lacks something of it


class SearchRuns:
    """`with SearchRuns(...) as runs`: the parent is FINISHED, FAILED or KILLED as the block ends."""

    def __init__(self, params: Params, dataset: str, method: str, folder: Path):
        self.params, self.dataset, self.method, self.folder = params, dataset, method, folder
        self.uri, self.client, self.parent, self.broken = store_uri(params), None, None, False
        self.children: dict[str, Any] = {}  # runs by trial

    def __enter__(self) -> "SearchRuns":
        self._attempt(self._start)
        return self

    def __exit__(self, kind, error, trace) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        if self.parent:
            with contextlib.suppress(Exception):
                self.client.set_terminated(self.parent, status)

    def trial(self, record: dict[str, Any]) -> None:
        """Log a trial that has ended."""
        self._attempt(lambda: self._write(record))

    def finish(self, records: list[dict[str, Any]], document: dict[str, Any]) -> None:
        """Log what is missing, and the choice."""
        if self.broken:
            self.broken = False
            self._attempt(self._start, quiet=True)
        for record in records:
            self._attempt(lambda record=record: self._write(record), quiet=True)
        self._attempt(lambda: self._write_choice(document), quiet=True)
        self._mark(self.broken)

    def _mark(self, missing: bool) -> None:
        """Whether MLflow lacks something, for the next start."""
        with contextlib.suppress(OSError):
            mark = self.folder / UNTRACKED
            mark.touch() if missing else mark.unlink(missing_ok=True)

    def _attempt(self, call: Callable[[], None], quiet: bool = False) -> None:
        if self.broken:
            return
        try:
            call()
        except Exception as error:
            self.broken = True
            if not quiet:
                print(f"warning: the search goes on untracked; {why(error, self.uri)}", file=sys.stderr)

    def _start(self) -> None:
        self.client = connect(self.uri)
        experiment = experiment_id(self.client, self.uri, self.dataset)
        self._close_forgotten(experiment)
        found = self._runs(experiment, f"tags.`{SEARCH}` = '{self.folder.name}' and tags.stage = 'tune'")
        self.parent = found[0].info.run_id if found else self._create_parent(experiment)
        self.client.update_run(self.parent, status="RUNNING")
        children = self._runs(experiment, f"tags.`{PARENT}` = '{self.parent}'")
        self.children = {run.data.tags.get(TRIAL): run for run in children}
        self.experiment = experiment

    def _close_forgotten(self, experiment: str) -> None:
        """Parents of this folder's earlier searches that were killed: nothing runs them any more."""
        mine = {path.name for path in searches(self.dataset, self.method).iterdir() if not _is_running(path.name)}
        query = f"attributes.status = 'RUNNING' and tags.stage = 'tune' and tags.method = '{self.method}'"
        for run in self._runs(experiment, query):
            if run.data.tags.get(SEARCH) in mine:
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _runs(self, experiment: str, query: str) -> list:
        return list(self.client.search_runs([experiment], query, max_results=MANY))

    def _create_parent(self, experiment: str) -> str:
        tags = {SEARCH: self.folder.name, "stage": "tune", "dataset": self.dataset, "method": self.method}
        tags |= {"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}
        run = self.client.create_run(experiment, run_name=f"search {self.method}", tags=tags).info.run_id
        self._log_params(run, {"search": self.params.search.model_dump()})
        return run

    def _log_params(self, run: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(name, str(value)) for name, value in flatten(values).items()])

    def _write(self, record: dict[str, Any]) -> None:
        key = trial_key(record["params"])
        run = self.children.get(key)
        if run is None:
            run = self._create_child(key, record)
            self._log_params(run.info.run_id, record["params"])
        elif run.info.status != "RUNNING":
            return
        self.client.log_batch(run.info.run_id, metrics=_metrics(record["scores"]))
        self.client.set_tag(run.info.run_id, "search.state", record["state"])
        self.client.set_terminated(run.info.run_id, "FAILED" if record["state"] in (FAILED, LOST) else "FINISHED")
        self.children[key] = self.client.get_run(run.info.run_id)

    def _create_child(self, key: str, record: dict[str, Any]):
        tags = {PARENT: self.parent, TRIAL: key, "stage": "trial"}
        tags |= {"search.failure": record["failure"]} if record["failure"] else {}
        began = int(1000 * (time.time() - sum(record["seconds"])))
        return self.client.create_run(
            self.experiment, start_time=began, tags=tags, run_name=f"{self.method} trial {record['number']}"
        )

    def _write_choice(self, document: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        best, now = document["trials"][document["chosen"]], int(1000 * time.time())
        values = {name: value for name, value in best.items() if isinstance(value, int | float)}
        self.client.log_batch(self.parent, [Metric(f"best.{name}", value, now, 0) for name, value in values.items()])
        for name, value in document["choice"].items():
            self.client.set_tag(self.parent, f"best.{name}", str(value))


def _is_running(search: str) -> bool:
    """Whether another process holds the search's lock."""
    return is_held(STATE / "locks" / f"search-{search}.lock")


def _metrics(scores: list[dict[str, Any]]) -> list:
    """Scores by partition; losses by epoch, one partition after the other."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    found = [
        Metric(name, float(value), now, step)
        for step, one in enumerate(scores) for name, value in one.items() if name != "losses"
    ]  # fmt: skip
    losses = [loss for one in scores for loss in one.get("losses", [])]
    return found + [Metric("loss", loss, now, step) for step, loss in enumerate(losses)]
