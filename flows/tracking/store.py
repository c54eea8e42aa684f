"""The MLflow tracking store: connecting to it, and the run that a stage writes there.

Tracking is a convenience of the stages, never a condition: a store that fails costs one warning, not a training.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from flows.project.paths import STATE, RunKey
from mmrl_core.config import Params
from mmrl_core.errors import UserError
from mmrl_core.sections import TrackingSection

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what fails is raised as well; a traceback beside it is not one line
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to --json
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a uv.lock in the working directory is not the model's
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own defaults wait minutes for a server that is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
LOCK_TIMEOUT = 60  # seconds; the first use of a database migrates it, which takes about two
PAUSES = (0.5, 60)  # seconds between attempts to reach a server that failed: the first, doubled up to the last
PATIENCE = 6  # seconds that the end of a stage waits for such a server
DIGEST_LENGTH = 36  # of a dataset input; the tag data.digest holds the whole one


class StoreFailed(UserError):
    """The store cannot be used, now or at all."""


def store_uri(params: Params | None = None) -> str:
    """MLFLOW_TRACKING_URI where it is set, else tracking.uri; the path of a sqlite file is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (params.tracking if params else TrackingSection()).uri
    return absolute(uri)


def absolute(uri: str) -> str:
    """The same store, whatever the working directory becomes, by the driver of PostgreSQL that is installed here."""
    database = database_file(uri)
    if uri.startswith("postgresql://"):  # SQLAlchemy's default is another one
        return uri.replace("postgresql://", "postgresql+psycopg2://", 1)
    return f"sqlite:///{database}" if database else uri


def database_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for every other kind."""
    prefix, found, path = uri.partition(":///")
    return Path(path).absolute() if found and prefix.startswith("sqlite") and path else None


def lock(uri: str, name: str) -> FileLock:
    """A lock in .mmrl/locks beside the database, or in the working directory for a server."""
    database = database_file(uri)
    folder = (database.parent if database else Path.cwd()) / STATE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock", timeout=LOCK_TIMEOUT)


def connect(uri: str, *, create: bool = True):
    """A client of the store, its tables created. Raises UserError when it cannot be used, within seconds.

    Two processes that create the tables of one database at once would corrupt it, so one waits for the other.
    `create=False` refuses a sqlite file that does not exist instead of creating it.
    """
    database = database_file(uri)
    if database and not database.exists() and not create:
        raise UserError(f"there is no MLflow store at {database}; run `mmrl register` first or set tracking.uri")
    with store_errors(uri), lock(uri, "tracking") if database else contextlib.nullcontext():
        client = _client(uri)
        client.search_experiments(max_results=1)
        return client


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """What a store, its driver or the way to it raises, as StoreFailed with one line."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _store_failures()):
            raise
        raise StoreFailed(
            f"the MLflow store {redacted(uri)} cannot be used: {first_line(error)}; "
            "check tracking.uri and MLFLOW_TRACKING_URI"
        ) from error


def _store_failures() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, ImportError, OSError  # OSError: also lock timeouts and HTTP failures


def _client(uri: str):
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if uri.partition(":")[0].partition("+")[0] in DATABASES:
        _check_database(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_database(uri: str) -> None:
    """Fail at once where MLflow would retry for minutes."""
    import sqlalchemy

    limit = {"connect_timeout": 5} if uri.startswith(("postgresql", "mysql")) else {}
    engine = sqlalchemy.create_engine(uri, connect_args=limit)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def experiment_id(client, uri: str, name: str) -> str:
    """The experiment of that name, created where missing; artifacts of a sqlite store lie in mlartifacts/ beside it."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    database = database_file(uri)
    location = (database.parent / "mlartifacts" / name).as_uri() if database else None
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:  # another process was faster
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


class Tracked:
    """One run in the store. The first failure costs one warning.

    What the store misses is kept in order and sent once it answers, tried again after growing pauses while the stage
    goes on, and for at most PATIENCE seconds when it ends.
    """

    def __init__(self, uri: str):
        self.run_id: str | None = None
        self._uri, self._client = uri, None
        self._missed: deque[Callable[[], None]] = deque()
        self._pause, self._again_at, self._warned = PAUSES[0], 0.0, False

    def log_metrics(self, metrics: dict[str, Any], step: int = 0) -> None:
        """Log the numbers of a (nested) dictionary under dotted names; anything else in it is passed over."""
        now = int(time.time() * 1000)
        self._attempt(lambda: self._log_metrics(metrics, step, now))

    def log_artifacts(self, folder: str | Path) -> None:
        """Copy a folder's files to the run's artifacts."""
        self._attempt(lambda: self._client.log_artifacts(self.run_id, str(folder)))

    def set_tags(self, tags: dict[str, Any]) -> None:
        self._attempt(lambda: self._set_tags(tags))

    def _start(self, key: RunKey, settings: dict[str, Any], tags: dict[str, Any]) -> None:
        self._client = connect(self._uri)  # before the import below: it sets what MLflow reads when it is imported
        from mlflow.entities import Param

        experiment = experiment_id(self._client, self._uri, key.dataset)
        name = key.name.removeprefix(f"{key.dataset}/")
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
        """Make a call after those that were missed; never raises."""
        self._missed.append(call)
        if time.monotonic() >= self._again_at:
            self._send()

    def _send(self) -> None:
        """Make the missed calls in order, up to the first that fails."""
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


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def git_commit() -> str | None:
    """The commit that is checked out, with `-dirty` when files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _commit_tag() -> dict[str, str]:
    commit = git_commit()
    return {"mlflow.source.git.commit": commit} if commit else {}


def why(error: Exception, uri: str) -> str:
    """One line on what failed, naming the store."""
    return str(error) if isinstance(error, UserError) else f"{redacted(uri)}: {first_line(error)}"


def redacted(text: str) -> str:
    """The text with passwords in URIs blotted out."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without passwords or a long middle; its class where it has none."""
    line = redacted((str(error).strip() or type(error).__name__).splitlines()[0].rstrip("."))
    return line if len(line) <= 300 else f"{line[:145]} ... {line[-145:]}"
