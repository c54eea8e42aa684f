"""A search in MLflow: one parent run, one child a trial. Told from what is there already, so that a resume adds to it.

Children are written when their trial has ended, the parent is open while the search runs. A store that fails costs one
warning; what it missed is written when the search ends, if it answers again by then.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flows.project.outputs import is_held
from flows.project.paths import STATE, searches
from flows.settings.dotted import flatten
from flows.tracking.run import git_commit
from flows.tracking.store import connect, experiment_id, store_uri, why
from flows.tuning.identity import Search
from mmrl_core.search.trial import Record, Scores, SearchDocument

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

PARENT, SEARCH, TRIAL = "mlflow.parentRunId", "search.id", "search.trial"
MANY = 1000  # runs a query
UNTRACKED = "untracked"  # a mark in the search's folder: MLflow lacks something of it


class SearchRuns:
    """`with SearchRuns(...) as runs`: the parent is FINISHED, FAILED or KILLED as the block ends."""

    client: "MlflowClient"  # this and the experiment's id from `_start` on
    experiment: str

    def __init__(self, search: Search):
        self.search, self.uri = search, store_uri(search.params)
        self.parent: str | None = None
        self.broken = False
        self.children: dict[str, Run] = {}  # by trial

    def __enter__(self) -> "SearchRuns":
        self._attempt(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        if self.parent:
            with contextlib.suppress(Exception):
                self.client.set_terminated(self.parent, status)

    def trial(self, record: Record) -> None:
        """Log a trial that has ended."""
        self._attempt(partial(self._write, record))

    def finish(self, records: list[Record], document: SearchDocument) -> None:
        """Log what is missing, and the choice."""
        if self.broken:
            self.broken = False
            self._attempt(self._start, quiet=True)
        for record in records:
            self._attempt(partial(self._write, record), quiet=True)
        self._attempt(partial(self._write_choice, document), quiet=True)
        self._mark(self.broken)

    def _mark(self, missing: bool) -> None:
        """Whether MLflow lacks something, for the next start."""
        with contextlib.suppress(OSError):
            mark = self.search.folder / UNTRACKED
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
        self.experiment = experiment_id(self.client, self.uri, self.search.dataset)
        self._close_forgotten()
        parents = self._runs(f"tags.`{SEARCH}` = '{self.search.folder.name}' and tags.stage = 'tune'")
        self.parent = parents[0].info.run_id if parents else self._create_parent()
        self.client.update_run(self.parent, status="RUNNING")
        children = self._runs(f"tags.`{PARENT}` = '{self.parent}'")
        self.children = {run.data.tags.get(TRIAL): run for run in children}

    def _close_forgotten(self) -> None:
        """Parents of this folder's earlier searches that were killed: nothing runs them any more."""
        family = searches(self.search.dataset, self.search.method)
        mine = {path.name for path in family.iterdir() if not _is_running(path.name)}
        query = f"attributes.status = 'RUNNING' and tags.stage = 'tune' and tags.method = '{self.search.method}'"
        for run in self._runs(query):
            if run.data.tags.get(SEARCH) in mine:
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _runs(self, query: str) -> "list[Run]":
        return list(self.client.search_runs([self.experiment], query, max_results=MANY))

    def _create_parent(self) -> str:
        search = self.search
        tags = {SEARCH: search.folder.name, "stage": "tune", "dataset": search.dataset, "method": search.method}
        tags |= {"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}
        run = self.client.create_run(self.experiment, run_name=f"search {search.method}", tags=tags).info.run_id
        self._log_params(run, flatten({"search": search.params.search.model_dump()}))
        return run

    def _log_params(self, run: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(name, str(value)) for name, value in values.items()])

    def _write(self, record: Record) -> None:
        run = self.children.get(record["key"])
        if run is None:
            run = self._create_child(record)
            self._log_params(run.info.run_id, record["params"])
        elif run.info.status != "RUNNING":
            return
        self.client.log_batch(run.info.run_id, metrics=_metrics(record["scores"]))
        self.client.set_tag(run.info.run_id, "search.state", record["state"])
        self.client.set_terminated(run.info.run_id, "FAILED" if record["state"] in ("failed", "lost") else "FINISHED")
        self.children[record["key"]] = self.client.get_run(run.info.run_id)

    def _create_child(self, record: Record) -> "Run":
        tags = {PARENT: self.parent, TRIAL: record["key"], "stage": "trial"}
        tags |= {"search.failure": record["failure"]} if record["failure"] else {}
        began = int(1000 * (time.time() - sum(record["seconds"])))
        return self.client.create_run(
            self.experiment, start_time=began, tags=tags, run_name=f"{self.search.method} trial {record['number']}"
        )

    def _write_choice(self, document: SearchDocument) -> None:
        from mlflow.entities import Metric

        best, now = document["trials"][document["chosen"]], int(1000 * time.time())
        values = {name: value for name, value in best.items() if isinstance(value, int | float)}
        self.client.log_batch(self.parent, [Metric(f"best.{name}", value, now, 0) for name, value in values.items()])
        for name, value in document["choice"].items():
            self.client.set_tag(self.parent, f"best.{name}", str(value))


def _is_running(search: str) -> bool:
    """Whether another process holds the search's lock."""
    return is_held(STATE / "locks" / f"search-{search}.lock")


def _metrics(scores: list[Scores]) -> "list[Metric]":
    """Scores by partition; losses by epoch, one partition after the other."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    metrics = [
        Metric(name, float(value), now, step)
        for step, of_partition in enumerate(scores) for name, value in of_partition.items() if name != "losses"
    ]  # fmt: skip
    losses = [loss for of_partition in scores for loss in of_partition.get("losses", [])]
    return metrics + [Metric("loss", loss, now, step) for step, loss in enumerate(losses)]
