"""Locks for changes of the registry: one process at a time, on one machine or several.

PostgreSQL holds the lock itself, beside a sqlite file it is a file, and through an MLflow server a queue of runs.
"""

import contextlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from flows.tracking.queue import queued
from flows.tracking.store import LOCK_TIMEOUT, lock, store_errors
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code: the lock was not available in time
OURS = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted
          AND (classid::bigint << 32) | objid::bigint = :key AND objsubid = 1"""


class Held(NamedTuple):
    """A lock that is held. `still` asks whoever keeps it: a server that was restarted has forgotten it."""

    name: str
    still: Callable[[], bool]

    def check(self) -> None:
        """Raises UserError where the lock was lost: another process may be changing the registry already."""
        if not self.still():
            raise UserError(
                f"the lock on the registry ({self.name}) was lost, as when the database is restarted, and what was not "
                "done yet is left undone; repeat the command, which finishes it"
            )


@contextlib.contextmanager
def exclusive(uri: str, name: str, patience: float = LOCK_TIMEOUT) -> Iterator[Held]:
    """Hold the lock `name` of a store: an advisory lock of PostgreSQL (a session's, so that of a killed process is
    released), the place at the head of a queue on an MLflow server, otherwise a file beside the database.

    Says so once where it has to wait. Raises UserError after `patience` seconds of waiting.
    """
    holder = _advisory if uri.startswith("postgresql") else _in_queue if uri.startswith("http") else _file
    with holder(uri, name, patience) as still:
        yield Held(name, still)


@contextlib.contextmanager
def _file(uri: str, name: str, patience: float) -> Iterator[Callable[[], bool]]:
    held = lock(uri, name)
    try:
        held.acquire(timeout=0)
    except TimeoutError:
        _say_waiting(name)
        try:
            held.acquire(timeout=patience)
        except TimeoutError:
            raise UserError(_busy(name)) from None
    try:
        yield lambda: held.is_locked
    finally:
        held.release()


@contextlib.contextmanager
def _in_queue(uri: str, name: str, patience: float) -> Iterator[Callable[[], bool]]:
    with queued(uri, name, patience, lambda: _say_waiting(name), _busy(name)) as still:
        yield still


@contextlib.contextmanager
def _advisory(uri: str, name: str, patience: float) -> Iterator[Callable[[], bool]]:
    import sqlalchemy

    with store_errors(uri):
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        connection = engine.connect()
    with contextlib.closing(connection):  # closing it releases the lock
        with store_errors(uri):
            _wait(connection, name, patience)
        yield lambda: _is_held(connection, name)


def _wait(connection: "Connection", name: str, patience: float) -> None:
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _key(name)}).scalar():
        return
    _say_waiting(name)
    try:
        connection.execute(text(f"SET lock_timeout = {int(patience * 1000)}"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _key(name)})
    except OperationalError as error:
        if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
            raise
        raise UserError(_busy(name)) from None


def _is_held(connection: "Connection", name: str) -> bool:
    """Whether this connection's own session holds the lock; one that was made anew after a restart does not."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return bool(connection.execute(text(OURS), {"key": _key(name)}).scalar())
    except SQLAlchemyError:
        return False


def _key(name: str) -> int:
    return zlib.crc32(name.encode())


def _say_waiting(name: str) -> None:
    print(f"another process is changing the registry ({name}); waiting for it", file=sys.stderr, flush=True)


def _busy(name: str) -> str:
    return f"another process has been changing the registry ({name}) for too long; wait for it or end it, then repeat"
