"""The MLflow tracking store: where it is, connecting to it, its experiments, what its errors say.

Stages do not depend on tracking: a store that fails prints one warning, and training goes on.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from flows.project.extras import lacking
from flows.project.paths import STATE
from flows.settings.params import Params
from flows.settings.sections import TrackingSection
from flows.tracking import places
from flows.tracking.redaction import first_line, printable
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # failures are raised as well; MLflow would print a traceback besides
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to --json
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a uv.lock in the working directory is not the model's
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own defaults wait minutes for a server that is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds to answer a question; `transfer` is for files
}
STANDSTILL = 300  # seconds in which a slow store may take and send no byte of a file, and not answer
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_transferring = threading.RLock()
LOCK_TIMEOUT = 60  # seconds; the first use of a database migrates it, which takes about two


class StoreFailed(UserError):
    """The store cannot be used, now or at all."""


def store_uri(params: Params | None = None) -> str:
    """MLFLOW_TRACKING_URI where it is set, else tracking.uri; the path of a sqlite file is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (params.tracking if params else TrackingSection()).uri
    return absolute(uri)


def absolute(uri: str) -> str:
    """The URI with an absolute path, independent of the working directory, and with the PostgreSQL driver that is
    installed here."""
    database = database_file(uri)
    if uri.startswith("postgresql://"):  # SQLAlchemy's default is another one
        return uri.replace("postgresql://", "postgresql+psycopg2://", 1)
    return f"sqlite:///{database}" if database else uri


def database_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for every other kind."""
    prefix, separator, path = uri.partition(":///")
    return Path(os.path.expanduser(path)).absolute() if separator and prefix.startswith("sqlite") and path else None


def lock(uri: str, name: str) -> FileLock:
    """A lock in .mmrl/locks beside the database, or in the working directory for a server."""
    database = database_file(uri)
    folder = (database.parent if database else Path.cwd()) / STATE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock", timeout=LOCK_TIMEOUT)


def connect(uri: str, *, create: bool = True) -> "MlflowClient":
    """A client of the store, its tables created where there are none, and never migrated (schema.py). Raises UserError
    when it cannot be used, within seconds.

    Two processes that create the tables of one database at once would corrupt it, so one waits for the other.
    `create=False` refuses a sqlite file that does not exist instead of creating it.
    """
    database = database_file(uri)
    if database and not database.exists() and not create:
        raise UserError(f"there is no MLflow store at {database}; run `mmrl register` first or set tracking.uri")
    set_environment()
    from mlflow import MlflowClient

    # ValueError: of an address that cannot be read
    with store_errors(uri, ValueError), lock(uri, "tracking") if database else contextlib.nullcontext():
        if uri.partition(":")[0].partition("+")[0] in DATABASES:
            from flows.tracking.schema import check_schema  # which stands on this file

            check_schema(uri)
        if database:
            places.settle(database)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client


@contextlib.contextmanager
def transfer(client: "MlflowClient | None" = None) -> Iterator[None]:
    """While files go to the store or come from it a request may stand still for STANDSTILL seconds.

    MLflow has one limit for connecting, sending and waiting. So a client of a server first asks it something: one that
    is dead fails within seconds, as it does elsewhere, and one that is slow is waited for.
    """
    set_environment()
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT

    if client and client.tracking_uri.startswith("http"):
        client.search_experiments(max_results=1)
    with _transferring:  # the limit is the process's
        before = MLFLOW_HTTP_REQUEST_TIMEOUT.get()
        MLFLOW_HTTP_REQUEST_TIMEOUT.set(max(before, STANDSTILL))
        try:
            yield
        finally:
            MLFLOW_HTTP_REQUEST_TIMEOUT.set(before)


@contextlib.contextmanager
def store_errors(uri: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what MLflow, the database driver or the network raises, and `more`, into a StoreFailed of one line."""
    try:
        yield
    except Exception as error:
        if advice := lacking(error):
            raise StoreFailed(f"the MLflow store {printable(uri)} cannot be used: {advice}") from None
        if not isinstance(error, (*_store_failures(), *more)):
            raise
        raise StoreFailed(
            f"the MLflow store {printable(uri)} cannot be used: {first_line(error, uri)}; "
            "check tracking.uri and MLFLOW_TRACKING_URI"
        ) from (error if printable(uri) == uri else None)  # a logged traceback would tell the password


def _store_failures() -> tuple[type[Exception], ...]:
    plain = sqlite3.Error, ImportError, OSError  # OSError: also lock timeouts and HTTP failures
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError:  # then it has raised nothing
        return plain
    return MlflowException, SQLAlchemyError, *plain


def set_environment() -> None:
    """What MLflow reads when it is imported, so before that."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The experiment of that name, created where missing; artifacts of a sqlite store lie in mlartifacts/ beside it.
    Raises UserError for one that was deleted: MLflow keeps its name and its runs until it is brought back."""
    from mlflow.exceptions import MlflowException

    experiment, database = client.get_experiment_by_name(name), database_file(uri)
    if experiment is None:
        location = (database.parent / places.ROOT / name).as_uri() if database else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        where, number = printable(uri), experiment.experiment_id
        raise UserError(
            f"the experiment {name} of the MLflow store {where} was deleted; bring it back with "
            f"`MLFLOW_TRACKING_URI='{where}' mlflow experiments restore --experiment-id {number}`"
        )
    if database:
        places.say_outside(f"experiment {name}", experiment.artifact_location, database)
    return experiment.experiment_id


def why(error: Exception, uri: str) -> str:
    """One line on what failed, naming the store."""
    return str(error) if isinstance(error, UserError) else f"{printable(uri)}: {first_line(error, uri)}"
