"""The databases of MLflow stores as files: dumped, looked into without MLflow (which would upgrade them), loaded.

sqlite by its online backup, PostgreSQL (postgres.py) by pg_dump and pg_restore.
"""

import itertools
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from flows.maintenance import postgres
from flows.tracking.redaction import printable
from flows.tracking.store import database_file
from mmrl_core.errors import Damaged, UserError

if TYPE_CHECKING:
    from sqlalchemy import Connection

Kind = Literal["sqlite", "postgresql"]
TABLES = ("alembic_version", "experiments", "registered_models", "model_versions", "model_version_tags")
USES = ("registered_models", "runs")  # of which a row says that a store is used
PATIENCE = 30.0  # seconds that somebody else's use of a sqlite file is waited for
DELETED = "Deleted_Internal"
MAGIC = b"PGDMP"  # of pg_dump's custom format
BESIDE = ("-journal", "-wal", "-shm")  # what sqlite would apply to the file that it finds there


class SavedVersion(NamedTuple):
    """A version in a database: the adapter that it was registered with (None: not by mmrl), and where its files lie."""

    workspace: str
    name: str
    version: int
    adapter_sha256: str | None
    location: str

    @property
    def key(self) -> tuple[str, str, int]:
        return self[:3]


class Content(NamedTuple):
    """What a database says: its schema's revision, its versions, where experiments store their artifacts, and whether
    it holds a model or a run."""

    revision: str | None
    versions: list[SavedVersion]
    locations: list[str]
    used: bool


def kind_of(uri: str) -> Kind:
    """Raises UserError for a store that is no database at hand, such as a tracking server."""
    if database_file(uri):
        return "sqlite"
    if uri.partition(":")[0].partition("+")[0] == "postgresql":
        return "postgresql"
    raise UserError(
        f"a backup needs the store's own database, not {printable(uri)}; set tracking.uri to its sqlite or "
        "PostgreSQL URI, such as --set tracking.uri=postgresql://..."
    )


def dump(uri: str, path: Path) -> Content:
    """Save a database as a file, in one moment, and say what it holds then. Raises UserError."""
    if database := database_file(uri):
        copy_sqlite(database, path)
    else:
        options = ("--format=custom", "--no-owner", "--no-privileges", _patience(), f"--file={path}")
        postgres.on_database("pg_dump", uri, *options)
    return in_file(kind_of(uri), path, f"the database {printable(uri)}")


def in_file(kind: Kind, path: Path, what: str = "the archive's database") -> Content:
    """What a dump holds, without changing it. Raises Damaged where it is not whole, or not an MLflow store's."""
    if kind == "sqlite":
        return _in_sqlite(path, what)
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{what} was saved as SQL by an older release; restore it with that one")
    postgres.run(["pg_restore", f"--file={os.devnull}", str(path)])  # all of it can be read
    tables = [f"--table={table}" for table in TABLES]
    with _as_damage(what):
        return _content(postgres.copied(postgres.run(["pg_restore", "--data-only", *tables, "--file=-", str(path)])))


def in_store(uri: str) -> Content | None:
    """What a store's database holds; None where there is none yet, or no table in it. Raises UserError."""
    if database := database_file(uri):
        return _in_sqlite(database, str(database)) if database.exists() and database.stat().st_size else None
    with postgres.connected(uri) as connection:
        import sqlalchemy

        if not sqlalchemy.inspect(connection).get_table_names():
            return None
        with _as_damage(f"the database {printable(uri)}"):
            return _content(_tables_of(connection))


def is_same(uri: str, path: Path) -> bool:
    """Whether a store's database, which is not empty, holds exactly what a dump holds."""
    if database := database_file(uri):
        with _reading(database) as one, _reading(path) as other:
            return all(mine == its for mine, its in itertools.zip_longest(one.iterdump(), other.iterdump()))
    there = postgres.on_database("pg_dump", uri, "--data-only", "--no-owner", _patience())
    return postgres.copied(there) == postgres.copied(postgres.run(["pg_restore", "--data-only", "--file=-", str(path)]))


def _patience() -> str:
    """pg_dump's option for how long somebody else's open transaction is waited for."""
    return f"--lock-wait-timeout={postgres.PATIENCE * 1000}"


def load(uri: str, path: Path) -> None:
    """Replace a store's database by a dump, in one transaction. Raises UserError, with nothing changed."""
    database = database_file(uri)
    if database is None:
        postgres.wait_for_transactions(uri)
        postgres.on_database("pg_restore", uri, "--clean", "--if-exists", "--single-transaction", "--exit-on-error",
                             "--no-owner", "--no-privileges", str(path))  # fmt: skip
    elif database.exists():
        copy_sqlite(path, database)
    else:
        for suffix in BESIDE:  # of the file that was lost
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        os.replace(path, database)


def copy_sqlite(source: Path, target: Path) -> None:
    """SQLite's online backup, in one transaction: consistent, even while other processes read or write.

    Both files are locked first, since a backup itself would wait for another process for ever. Raises UserError.
    """
    try:
        with _reading(source) as old, closing(sqlite3.connect(target, timeout=PATIENCE)) as new:
            new.execute("PRAGMA locking_mode = EXCLUSIVE")  # what the next two lines lock stays locked
            new.execute("BEGIN EXCLUSIVE")
            new.commit()
            old.backup(new)
    except sqlite3.Error as error:
        raise UserError(
            f"the database {source} could not be copied to {target}: {error}; look whether there is room, and whether "
            "another process uses it"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees one moment of a sqlite file. It changes nothing, but what a killed process left half-done
    in there is undone, as whoever opens it next would."""
    address = f"{path.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield connection


def _in_sqlite(path: Path, what: str) -> Content:
    try:
        with _reading(path) as connection:
            if (verdict := connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict)
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            connection.row_factory = sqlite3.Row
            rows = {name: [dict(row) for row in connection.execute(query)] for name, query in _queries(names).items()}
    except sqlite3.Error as error:
        raise Damaged(f"{what} is no whole sqlite database ({error}); use another, or move it away") from error
    with _as_damage(what):
        return _content(rows)


def _queries(names: Collection[str]) -> dict[str, str]:
    """What is asked of a database with these tables."""
    some = {name: f"SELECT * FROM {name} LIMIT 1" for name in USES if name in names}
    return some | {name: f"SELECT * FROM {name}" for name in TABLES if name in names}


def _tables_of(connection: "Connection") -> dict[str, list[Mapping[str, Any]]]:
    import sqlalchemy
    from sqlalchemy import text

    queries = _queries(sqlalchemy.inspect(connection).get_table_names())
    return {name: list(connection.execute(text(query)).mappings()) for name, query in queries.items()}


@contextmanager
def _as_damage(what: str) -> Iterator[None]:
    """Raise Damaged where tables, columns or values are not those of an MLflow store."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise Damaged(f"{what} is not that of an MLflow store ({error}); name another") from None


def _content(tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> Content:
    """Raises LookupError, TypeError or ValueError where something is not as MLflow writes it."""
    if missing := [name for name in TABLES if name not in tables]:
        raise LookupError(f"no table {missing[0]}")
    revisions = [_text(row["version_num"]) for row in tables["alembic_version"]]
    tags = {_key(row): row["value"] for row in tables["model_version_tags"] if row["key"] == "adapter_sha256"}
    rows = [row for row in tables["model_versions"] if row["current_stage"] != DELETED]
    versions = [
        SavedVersion(*_key(row), tags.get(_key(row)), _text(row.get("storage_location") or row["source"]))
        for row in rows
    ]
    locations = [row["artifact_location"] for row in tables["experiments"] if row["artifact_location"]]
    used = any(True for name in USES for _ in tables.get(name, ()))
    return Content(",".join(sorted(revisions)) or None, sorted(versions, key=lambda one: one.key), locations, used)


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return _text(row.get("workspace", "default")), _text(row["name"]), int(row["version"])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
