"""The revision of a store's tables, read before MLflow opens it: MLflow itself migrates an older store unasked, and the
team's older servers then refuse it. Only `upgrade` migrates. A store that a server holds is the server's own affair.
"""

import contextlib
import functools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flows.tracking.locks import exclusive
from flows.tracking.redaction import printable
from flows.tracking.store import LOCK_TIMEOUT, database_file, set_environment, store_errors
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from sqlalchemy import Engine

CONNECT_TIMEOUT = 5  # seconds
UNKNOWN = ""  # the revision of a database that has tables and names none


def check_schema(uri: str) -> None:
    """Raises UserError for a database that MLflow would migrate or could not read; makes the tables of a sqlite store
    that has none, wholly or not at all. An empty one of another kind is left to MLflow."""
    present, database = revision(uri), database_file(uri)
    if present is None:
        if database:
            _migrate_sqlite(database)
        return
    if present != head():
        raise UserError(f"the MLflow store {printable(uri)} {_difference(present)}; nothing was changed")


def _difference(present: str) -> str:
    from mlflow.version import VERSION

    ours = f"MLflow {VERSION}, installed here, has revision {head()}"
    if present == UNKNOWN:
        return (
            f"has tables without a revision of MLflow's ({ours}): another program's, or of an MLflow that was killed "
            "as it made them; name an empty database in tracking.uri"
        )
    if known(present):
        return (
            f"was made by an older MLflow, which could not use it any more once it is upgraded: its tables have "
            f"revision {present} ({ours}); run `mmrl backup FILE --upgrade-store`, or install the MLflow that made it"
        )
    return (
        f"is not known to this MLflow: its tables have revision {present}, of a newer MLflow or another program "
        f"({ours}); install the MLflow that made it, or name another database in tracking.uri"
    )


def revision(uri: str) -> str | None:
    """The revision of a database's tables, which is only read; None where there are no tables, UNKNOWN where they name
    no revision. Raises what SQLAlchemy raises, within seconds: MLflow would retry for minutes."""
    from alembic.migration import MigrationContext
    from sqlalchemy import inspect

    database = database_file(uri)
    if database and not database.exists():  # connecting would create it
        return None
    with _engine(uri) as engine, engine.connect() as connection:
        heads = MigrationContext.configure(connection).get_current_heads()
        return ",".join(heads) or (UNKNOWN if inspect(connection).get_table_names() else None)


def head() -> str:
    """The revision that the installed MLflow needs."""
    return str(_scripts().get_current_head())


def known(revision: str) -> bool:
    """Whether the installed MLflow can upgrade tables of that revision, or has it itself."""
    return revision in {script.revision for script in _scripts().walk_revisions()}


@functools.cache
def _scripts() -> "ScriptDirectory":
    set_environment()
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(""))


def upgrade(uri: str) -> None:
    """Migrate a store to the revision of the installed MLflow, wholly or not at all: one that is there stays as it is.

    Other programs wait or fail meanwhile. Raises UserError.
    """
    database = database_file(uri)
    with exclusive(uri, "schema"), store_errors(uri):
        present = revision(uri)
        if present is not None and not known(present):
            check_schema(uri)  # which says what it is
        if database:
            _migrate_sqlite(database)
            return
        with _engine(uri) as engine:
            _migrate(engine)  # on PostgreSQL in one transaction


def _migrate_sqlite(database: Path) -> None:
    """By a copy, which replaces the tables in one transaction: sqlite commits every step of a migration by itself. The
    copy is a temporary database of sqlite's own, which no killed process leaves."""
    import sqlalchemy

    with (
        contextlib.closing(sqlite3.connect(database, timeout=LOCK_TIMEOUT)) as store,
        contextlib.closing(sqlite3.connect("", check_same_thread=False)) as copy,
    ):
        store.execute("PRAGMA locking_mode = EXCLUSIVE")  # nothing is written between the copy and its way back
        store.execute("BEGIN EXCLUSIVE")
        store.commit()
        store.backup(copy)
        engine = sqlalchemy.create_engine("sqlite://", creator=lambda: copy, poolclass=sqlalchemy.StaticPool)
        _migrate(engine)
        copy.backup(store)


def _migrate(engine: "Engine") -> None:
    set_environment()
    from mlflow.store.db import utils

    make = utils._initialize_tables if utils._is_empty_database(engine) else utils._upgrade_db
    make(engine)


@contextlib.contextmanager
def _engine(uri: str) -> "Iterator[Engine]":
    import sqlalchemy

    limit = {"connect_timeout": CONNECT_TIMEOUT} if uri.startswith(("postgresql", "mysql")) else {}
    engine = sqlalchemy.create_engine(uri, connect_args=limit)
    try:
        yield engine
    finally:
        engine.dispose()
