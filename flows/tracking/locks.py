"""Locks for changes of the registry: one process at a time, on one machine or several.

PostgreSQL holds the lock itself; for a sqlite file, or a tracking server, it is a file on this machine.
"""

import contextlib
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flows.tracking.store import LOCK_TIMEOUT, lock, store_errors
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code: the lock was not available in time


@contextlib.contextmanager
def exclusive(uri: str, name: str, patience: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the lock `name` of a store: an advisory lock of PostgreSQL (a session's, so that of a killed process is
    released), otherwise a file that only this machine sees. Raises UserError after `patience` seconds of waiting.
    """
    holder = _advisory if uri.startswith("postgresql") else _file
    with holder(uri, name, patience):
        yield


@contextlib.contextmanager
def _file(uri: str, name: str, patience: float) -> Iterator[None]:
    held = lock(uri, name)
    try:
        held.acquire(timeout=patience)
    except TimeoutError:
        raise UserError(_busy(name)) from None
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def _advisory(uri: str, name: str, patience: float) -> Iterator[None]:
    import sqlalchemy

    with store_errors(uri):
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        connection = engine.connect()
    with connection:  # closing it releases the lock
        with store_errors(uri):
            _wait(connection, name, patience)
        yield


def _wait(connection: "Connection", name: str, patience: float) -> None:
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    try:
        connection.execute(text(f"SET lock_timeout = {int(patience * 1000)}"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": zlib.crc32(name.encode())})
    except OperationalError as error:
        if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
            raise
        raise UserError(_busy(name)) from None


def _busy(name: str) -> str:
    return f"another process has been changing the registry ({name}) for too long; wait for it or end it, then repeat"
