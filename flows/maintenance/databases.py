"""The databases of MLflow stores as files: dumped, looked into without MLflow (which would upgrade them), loaded.

sqlite by its online backup, PostgreSQL by pg_dump and pg_restore.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.tracking.locks import LOCK_NOT_AVAILABLE
from flows.tracking.redaction import first_line, printable
from flows.tracking.store import database_file, store_errors
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Connection

KINDS = ("sqlite", "postgresql")
TABLES = ("alembic_version", "experiments", "registered_models", "model_versions", "model_version_tags")
USES = ("registered_models", "runs")  # of which a row says that a store is used
PATIENCE = 30  # seconds that somebody else's open transaction is waited for
DELETED = "Deleted_Internal"
MAGIC = b"PGDMP"  # of pg_dump's custom format


class SavedVersion(NamedTuple):
    """A version in a database: the adapter that it was registered with (None: not by mmrl), and where its files lie."""

    name: str
    version: int
    adapter_sha256: str | None
    location: str


class Content(NamedTuple):
    """What a database says: its schema's revision, its versions, where experiments store their artifacts, and whether
    it holds a model or a run."""

    revision: str | None
    versions: list[SavedVersion]
    locations: list[str]
    used: bool


def kind_of(uri: str) -> str:
    """One of KINDS. Raises UserError for a store that is no database at hand, such as a tracking server."""
    kind = uri.partition(":")[0].partition("+")[0]
    if kind not in KINDS or (kind == "sqlite" and database_file(uri) is None):
        raise UserError(
            f"a backup needs the store's own database, not {printable(uri)}; set tracking.uri to its sqlite or "
            "PostgreSQL URI, such as --set tracking.uri=postgresql://..."
        )
    return kind


def dump(uri: str, path: Path) -> Content:
    """Save a database as a file, in one moment, and say what it holds then. Raises UserError."""
    if database := database_file(uri):
        copy_sqlite(database, path)
        return in_file("sqlite", path)
    with _postgres(uri) as connection:
        from sqlalchemy import text

        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar()
        content = _content(_tables_of(connection), f"the database {printable(uri)}")
        options = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}", f"--file={path}")
        _program("pg_dump", uri, *options)
    return content


def in_file(kind: str, path: Path) -> Content:
    """What a dump holds, without changing it. Raises UserError where it is not the database of an MLflow store."""
    if kind == "sqlite":
        return _in_sqlite(path)
    if path.read_bytes()[: len(MAGIC)] != MAGIC:
        raise UserError(
            "the archive's PostgreSQL database was saved as SQL by an older release; restore it with that one"
        )
    tables = [f"--table={table}" for table in TABLES]
    return _content(
        _copied(_run(["pg_restore", "--data-only", *tables, "--file=-", str(path)])), "the archive's database"
    )


def in_store(uri: str) -> Content | None:
    """What a store's database holds; None where there is none yet, or no table in it. Raises UserError."""
    if database := database_file(uri):
        return _in_sqlite(database) if database.exists() and database.stat().st_size else None
    with _postgres(uri) as connection:
        import sqlalchemy

        if not sqlalchemy.inspect(connection).get_table_names():
            return None
        return _content(_tables_of(connection), f"the database {printable(uri)}")


def load(uri: str, path: Path) -> None:
    """Replace a store's database by a dump, in one transaction. Raises UserError, with nothing changed."""
    if database := database_file(uri):
        if not database.exists():
            os.replace(path, database)
            return
        copy_sqlite(path, database)
        return
    _wait_for_transactions(uri)
    _program("pg_restore", uri, "--clean", "--if-exists", "--single-transaction", "--exit-on-error", "--no-owner",
             "--no-privileges", str(path))  # fmt: skip


def copy_sqlite(source: Path, target: Path) -> None:
    """SQLite's online backup, in one transaction: consistent, even while other processes read or write."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as old,
            closing(sqlite3.connect(target, timeout=PATIENCE)) as new,
        ):
            old.backup(new)
    except sqlite3.Error as error:
        raise UserError(
            f"the database {source} could not be copied to {target}: {error}; look whether there is room, and whether "
            "another process uses it"
        ) from error


def _in_sqlite(path: Path) -> Content:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as connection:
            if (verdict := connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict)
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            connection.row_factory = sqlite3.Row
            rows = {name: [dict(row) for row in connection.execute(query)] for name, query in _queries(names).items()}
    except sqlite3.Error as error:
        raise UserError(f"{path} is no whole sqlite database ({error}); use another, or move it away") from error
    return _content(rows, str(path))


def _queries(names: Collection[str]) -> dict[str, str]:
    """What is asked of a database with these tables."""
    some = {name: f"SELECT * FROM {name} LIMIT 1" for name in USES if name in names}
    return some | {name: f"SELECT * FROM {name}" for name in TABLES if name in names}


def _tables_of(connection: "Connection") -> dict[str, list[Mapping[str, Any]]]:
    import sqlalchemy
    from sqlalchemy import text

    queries = _queries(sqlalchemy.inspect(connection).get_table_names())
    return {name: list(connection.execute(text(query)).mappings()) for name, query in queries.items()}


def _content(tables: Mapping[str, Iterable[Mapping[str, Any]]], what: str) -> Content:
    """Raises UserError where tables of an MLflow store are missing."""
    if missing := [name for name in TABLES if name not in tables]:
        raise UserError(f"{what} is not that of an MLflow store (no table {missing[0]}); name another")
    revisions = [str(row["version_num"]) for row in tables["alembic_version"]]
    tags = {
        (row["name"], int(row["version"])): row["value"]
        for row in tables["model_version_tags"]
        if row["key"] == "adapter_sha256"
    }
    versions = [
        SavedVersion(row["name"], int(row["version"]), tags.get((row["name"], int(row["version"]))),
                     row.get("storage_location") or row["source"])
        for row in tables["model_versions"]
        if row["current_stage"] != DELETED
    ]  # fmt: skip
    locations = [row["artifact_location"] for row in tables["experiments"] if row["artifact_location"]]
    used = any(True for name in USES for _ in tables.get(name, ()))
    return Content(revisions[0] if revisions else None, sorted(versions), locations, used)


@contextlib.contextmanager
def _postgres(uri: str) -> "Iterator[Connection]":
    with store_errors(uri):
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 10})
        with engine.connect() as connection:
            yield connection


def _wait_for_transactions(uri: str) -> None:
    """Raise UserError where somebody's open transaction holds a table: pg_restore would wait for it without an end,
    since what pg_dump writes sets the lock's timeout to none."""
    with _postgres(uri) as connection:
        import sqlalchemy
        from sqlalchemy import text
        from sqlalchemy.exc import OperationalError

        quoted = connection.dialect.identifier_preparer.quote
        tables = ", ".join(map(quoted, sqlalchemy.inspect(connection).get_table_names()))
        try:
            connection.execute(text(f"SET LOCAL lock_timeout = {PATIENCE * 1000}"))
            if tables:
                connection.execute(text(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE"))
        except OperationalError as error:
            if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
                raise
            raise UserError(
                f"another connection has held the store's tables for {PATIENCE} s; end its transaction, then repeat"
            ) from None


def _program(program: str, uri: str, *options: str) -> None:
    """Run one of PostgreSQL's programs on the database of a URI, with every parameter that the driver would get; none
    of them is on its command line."""
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    _, parameters = url.get_dialect()().create_connect_args(url)
    parameters = {"connect_timeout": 10} | parameters
    with tempfile.TemporaryDirectory() as folder:
        service = Path(folder) / "service"
        service.touch(mode=0o600)
        lines = [f"{name}={value}" for name, value in parameters.items() if name != "password"]
        service.write_text("\n".join(["[mmrl]", *lines, ""]))
        where = {"PGSERVICEFILE": str(service)}
        if "password" in parameters:
            where["PGPASSWORD"] = str(parameters["password"])
        try:
            _run([program, "--dbname=service=mmrl", *options], where, uri)
        except UserError as error:
            raise UserError(f"{error} on {printable(uri)}; nothing was changed") from None


def _run(command: list[str], environment: Mapping[str, str] | None = None, uri: str = "") -> str:
    """What one of PostgreSQL's programs prints. Raises UserError with the first line of what went wrong, without the
    secrets of a URI."""
    if not shutil.which(command[0]):
        raise UserError(f"{command[0]} is not on your PATH; install PostgreSQL's client programs (postgresql-client)")
    done = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True)
    if done.returncode:
        reason = first_line(RuntimeError(done.stderr), uri)
        if "lock timeout" in done.stderr:
            reason = (
                f"another connection has held the store's tables for {PATIENCE} s; end its transaction, then repeat"
            )
        raise UserError(f"{command[0]} failed: {reason}")
    return done.stdout


def _copied(script: str) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of a script's COPY commands, by table."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    lines = iter(script.split("\n"))
    for line in lines:
        if line.startswith("COPY ") and line.endswith(" FROM stdin;"):
            table, _, columns = line.removeprefix("COPY ").removesuffix(") FROM stdin;").partition(" (")
            names = [name.strip().strip('"') for name in columns.split(",")]
            rows = tables.setdefault(table.rpartition(".")[2].strip('"'), [])
            for row in lines:
                if row == "\\.":
                    break
                rows.append(dict(zip(names, map(_value, row.split("\t")), strict=True)))
    return tables


def _value(text: str) -> str | None:
    """A value of COPY's text format."""
    if text == "\\N":
        return None
    named = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
    parts, value = iter(text), ""
    for character in parts:
        if character == "\\":
            following = next(parts, "")
            character = named.get(following, following)
        value += character
    return value
