"""The MLflow run that a stage writes."""

import contextlib
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.project.paths import RunKey
from flows.settings.dotted import flatten
from flows.settings.params import Params
from flows.tracking.store import connect, experiment_id, store_uri, transfer, why

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAUSES = (0.5, 60)  # seconds between attempts to reach a server that failed: the first, doubled up to the last
PATIENCE = 6  # seconds that the end of a stage waits for such a server
WRITTEN = "dvc.lock"  # by DVC, as soon as a stage has run
DIGEST_LENGTH = 36  # of a dataset input; the tag data.digest holds the whole one


class Tracked:
    """One run in the store. The first call that fails prints a warning; no call raises.

    Calls that fail are kept in order and repeated, after growing pauses, while the stage goes on, and for at most
    PATIENCE seconds when it ends.
    """

    def __init__(self, uri: str):
        self.run_id: str | None = None
        self._uri = uri
        self._client: MlflowClient  # since `_start`, the first call: the others wait until it has succeeded
        self._missed: deque[Callable[[], None]] = deque()
        self._pause, self._again_at, self._warned = PAUSES[0], 0.0, False

    def log_metrics(self, metrics: dict[str, Any], step: int = 0) -> None:
        """Log the numbers of a (nested) dictionary under dotted names; values of other types are left out."""
        now = int(time.time() * 1000)
        self._attempt(lambda: self._log_metrics(metrics, step, now))

    def log_artifacts(self, folder: str | Path) -> None:
        """Copy a folder's files to the run's artifacts."""
        self._attempt(lambda: self._log_artifacts(str(folder)))

    def set_tags(self, tags: dict[str, Any]) -> None:
        self._attempt(lambda: self._set_tags(tags))

    def _start(self, key: RunKey, settings: dict[str, Any], tags: dict[str, Any]) -> None:
        self._client = connect(self._uri)  # before the import below: it sets what MLflow reads when it is imported
        from mlflow.entities import Param

        experiment = experiment_id(self._client, self._uri, key.dataset)
        name = f"{key.method}-{key.shots}shot/seed{key.seed}"
        if self.run_id is None:  # a second attempt goes on with the run of the first
            self.run_id = self._client.create_run(experiment, run_name=name).info.run_id
        values = [Param(name, str(value)) for name, value in flatten(settings).items()]
        self._client.log_batch(self.run_id, params=values)
        self._set_tags(key._asdict() | _commit_tag() | tags)
        if "data.digest" in tags:
            self._log_input(key.dataset, tags["data.digest"])

    def _set_tags(self, tags: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def _log_artifacts(self, folder: str) -> None:
        with transfer(self._client):
            self._client.log_artifacts(self.run_id, folder)

    def _log_metrics(self, metrics: dict[str, Any], step: int, now: int) -> None:
        from mlflow.entities import Metric

        numbers = flatten(metrics)
        numbers = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
        self._client.log_batch(self.run_id, [Metric(name, float(value), now, step) for name, value in numbers.items()])

    def _log_input(self, dataset: str, digest: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(dataset, digest[:DIGEST_LENGTH], source_type="local", source=f"data/{dataset}")
        training = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(self.run_id, [DatasetInput(data, [training])])
        self._client.log_param(self.run_id, "data.digest", digest)

    def _attempt(self, call: Callable[[], None]) -> None:
        """Make a call after those that failed before; never raises."""
        self._missed.append(call)
        if time.monotonic() >= self._again_at:
            self._send()

    def _send(self) -> None:
        """Repeat the missed calls in order, up to the first that fails."""
        try:
            while self._missed:
                self._missed[0]()
                self._missed.popleft()
            self._pause, self._again_at = PAUSES[0], 0.0
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not self._warned:
            later = "what it misses is sent if the store answers before it ends"
            print(f"warning: this run is not tracked for now, {later}; {why(error, self._uri)}", file=sys.stderr)
        self._warned = True
        self._again_at, self._pause = time.monotonic() + self._pause, min(2 * self._pause, PAUSES[1])

    def _end(self, status: str) -> None:
        """Close the run, also one whose tracking failed on the way, without a second warning."""
        self._pause, self._again_at, deadline = PAUSES[0], 0.0, time.monotonic() + PATIENCE
        self._attempt(lambda: self._client.set_terminated(self.run_id, status))
        while self._missed and self._again_at < deadline:
            time.sleep(max(0.0, self._again_at - time.monotonic()))
            self._send()


@contextlib.contextmanager
def tracked_run(
    params: Params, key: RunKey, stage: str, settings: dict[str, Any], tags: dict[str, Any] | None = None
) -> Iterator[Tracked]:
    """A run `mmrl-16shot/seed1` in the experiment of the dataset, FINISHED, FAILED or KILLED as the block ends.

    `settings` become parameters under dotted names; the tag `data.digest` also names the run's dataset input. A process
    that is killed outright leaves its run RUNNING.
    """
    run, status = Tracked(store_uri(params)), "KILLED"
    run._attempt(lambda: run._start(key, settings, {"stage": stage, **(tags or {})}))
    try:
        yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        run._end(status)


def git_commit() -> str | None:
    """The commit that is checked out, with `-dirty` when tracked files differ from it, other than the working
    directory's WRITTEN, which is no code; None outside a repository."""
    try:
        commit = _git("rev-parse", "--verify", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude){WRITTEN}")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*args: str) -> str:
    command = ["git", "--no-optional-locks", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _commit_tag() -> dict[str, str]:
    commit = git_commit()
    return {"mlflow.source.git.commit": commit} if commit else {}
