"""The MLflow tracking store: where it is, connecting to it, its experiments, what its errors say.

Tracking is a convenience of the stages, never a condition: a store that fails costs one warning, not a training.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from flows.project.paths import STATE
from flows.settings.params import Params
from flows.settings.sections import TrackingSection
from mmrl_core.errors import UserError

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
