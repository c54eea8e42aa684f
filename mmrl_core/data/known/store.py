"""A small database of files that were read: their state, the digest of their bytes, and what found them whole.

Several processes may use it at once, and one that is killed leaves what it had committed: SQLite's write-ahead log sees
to both. It is never needed: where it cannot be opened or written, one warning is logged and files are read again.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mmrl_core.data.known.files import State

FILE = "images-1.sqlite"  # another number for another schema
BUSY = 60  # seconds to wait for another process's commit, which takes milliseconds
BATCH = 256  # rows in a commit: what a killed process loses at the most
SCHEMA = """
CREATE TABLE IF NOT EXISTS places (id INTEGER PRIMARY KEY, path BLOB UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    place INTEGER, name BLOB, size INTEGER, mtime INTEGER, inode INTEGER, sha256 BLOB, decoder TEXT,
    PRIMARY KEY (place, name)
) WITHOUT ROWID;
"""
COLUMNS = "size, mtime, inode, sha256, decoder"
log = logging.getLogger(__name__)
T = TypeVar("T")


class Row(NamedTuple):
    """What is known of a file in that state. `decoder` is what decoded its image, "" where nothing did yet."""

    state: State
    sha256: bytes
    decoder: str


class Store:
    """Rows by place, a folder's path, and name below it, kept in `folder`; safe to use from several threads."""

    def __init__(self, folder: str | Path):
        self.file = Path(folder) / FILE
        self._lock, self._places = threading.Lock(), dict[str, int]()
        self._pending: list[tuple] = []
        self._database: sqlite3.Connection | None = None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._opened()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def digests(
        self, place: str, names: Sequence[str], states: Iterable[tuple[int, ...]], decoder: str | None
    ) -> list[bytes | None]:
        """The digest of each file that is known in the state that it has (size, time of change, inode) and, where one
        is given, by that decoder. Sorted names that lie close together are found in one look."""
        keys = list(map(_key, names))
        query = f"SELECT name, {COLUMNS} FROM images WHERE place = ? AND name BETWEEN ? AND ?"
        rows = self._all(query, (self._place(place), min(keys), max(keys))) if keys else []
        found = {row[0]: row for row in rows}
        return [
            row[4] if (row := found.get(key)) and row[1:4] == state and decoder in (None, row[5]) else None
            for key, state in zip(keys, states, strict=True)
        ]

    def pick(self, place: str, names: Sequence[str]) -> dict[str, Row]:
        """The rows of those of a few names that are known."""
        keys = {_key(name): name for name in names}
        query = f"SELECT name, {COLUMNS} FROM images WHERE place = ? AND name IN ({', '.join('?' * len(keys))})"
        return {keys[name]: _row(*rest) for name, *rest in self._all(query, (self._place(place), *keys))}

    def put(self, place: str, name: str, row: Row) -> None:
        """Keep a row; it is committed with the next BATCH of them, or by `flush`."""
        values = (self._place(place), _key(name), *row.state, row.sha256, row.decoder)
        with self._lock:
            self._pending.append(values)
            if len(self._pending) >= BATCH:
                self._commit()

    def flush(self) -> None:
        """Commit what is pending."""
        with self._lock:
            self._commit()

    def _opened(self) -> sqlite3.Connection:
        try:
            return _connected(self.file)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # it is busy, or cannot be written
                raise
            for end in ("", "-wal", "-shm"):  # no database, or a damaged one
                Path(f"{self.file}{end}").unlink(missing_ok=True)
            return _connected(self.file)

    def _place(self, path: str) -> int:
        number = self._places.get(path)
        if number is None:
            key = _key(path)
            self._run(lambda database: database.execute("INSERT OR IGNORE INTO places (path) VALUES (?)", (key,)))
            found = self._all("SELECT id FROM places WHERE path = ?", (key,))
            number = self._places[path] = found[0][0] if found else 0
        return number

    def _all(self, query: str, values: Iterable[Any]) -> list[tuple]:
        return self._run(lambda database: database.execute(query, tuple(values)).fetchall()) or []

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        with self._lock:
            return self._guarded(work)

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `work` gives of the database; None without one. The lock is held."""
        if self._database is None:
            return None
        try:
            return work(self._database)
        except sqlite3.Error as error:
            self._give_up(error)
            return None

    def _commit(self) -> None:
        rows, self._pending = self._pending, []
        if rows:
            self._guarded(lambda database: _insert(database, rows))

    def _give_up(self, error: Exception) -> None:
        log.warning("%s cannot be used (%s), so images are read again; remove it by `mmrl clean`", self.file, error)
        self._database = None


def _connected(file: Path) -> sqlite3.Connection:
    # Each statement commits by itself; the lock keeps two threads apart.
    database = sqlite3.connect(file, timeout=BUSY, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")  # a loss of power may lose the last commits, and no more
        database.executescript(SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def _insert(database: sqlite3.Connection, rows: list[tuple]) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _row(size: int, mtime: int, inode: int, sha256: bytes, decoder: str) -> Row:
    return Row(State(size, mtime, inode), sha256, decoder)


def _key(text: str) -> bytes:
    """SQLite's text has no half surrogates, names of files may have."""
    return text.encode(errors="surrogatepass")
