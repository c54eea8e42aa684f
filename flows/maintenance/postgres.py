"""PostgreSQL's own programs, and a plain connection, on the database of a SQLAlchemy URI."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flows.tracking.locks import LOCK_NOT_AVAILABLE
from flows.tracking.redaction import first_line, printable
from flows.tracking.store import store_errors
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Connection

PATIENCE = 30  # seconds that somebody else's open transaction is waited for
CONNECT_TIMEOUT = {"connect_timeout": 10}  # seconds
ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class Copied(dict[str, list[dict[str, str | None]]]):
    """The rows of a script's COPY commands, by table."""


@contextlib.contextmanager
def connected(uri: str) -> "Iterator[Connection]":
    with store_errors(uri):
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=CONNECT_TIMEOUT)
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SET lock_timeout = {PATIENCE * 1000}"))
            yield connection


def wait_for_transactions(uri: str) -> None:
    """Raise UserError where somebody's open transaction holds a table: pg_restore would wait for it without an end,
    since what pg_dump writes sets the lock's timeout to none."""
    with connected(uri) as connection:
        import sqlalchemy
        from sqlalchemy import text
        from sqlalchemy.exc import OperationalError

        quoted = connection.dialect.identifier_preparer.quote
        tables = ", ".join(map(quoted, sqlalchemy.inspect(connection).get_table_names()))
        try:
            if tables:
                connection.execute(text(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE"))
        except OperationalError as error:
            if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
                raise
            raise UserError(
                f"another connection has held the store's tables for {PATIENCE} s; end its transaction, then repeat"
            ) from None


def on_database(program: str, uri: str, *options: str) -> str:
    """What a program prints that works on the database of a URI. It gets every parameter that the driver would get,
    and none on its command line. Raises UserError."""
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    _, parameters = url.get_dialect()().create_connect_args(url)
    parameters = CONNECT_TIMEOUT | parameters
    with tempfile.TemporaryDirectory() as folder:
        service = Path(folder) / "service"
        service.touch(mode=0o600)
        lines = [f"{name}={value}" for name, value in parameters.items() if name != "password"]
        service.write_text("\n".join(["[mmrl]", *lines, ""]))
        where = {"PGSERVICEFILE": str(service)}
        if "password" in parameters:
            where["PGPASSWORD"] = str(parameters["password"])
        try:
            return run([program, "--dbname=service=mmrl", *options], where, uri)
        except UserError as error:
            raise UserError(f"{error} on {printable(uri)}; nothing was changed") from None


def run(command: list[str], environment: Mapping[str, str] | None = None, uri: str = "") -> str:
    """What one of PostgreSQL's programs prints. Raises UserError with the first line of what went wrong, without the
    secrets of a URI."""
    if not shutil.which(command[0]):
        raise UserError(f"{command[0]} is not on your PATH; install PostgreSQL's client programs (postgresql-client)")
    done = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        told = next((line for line in lines if " error: " in line), done.stderr)  # before it, what it was doing
        raise UserError(f"{command[0]} failed: {first_line(RuntimeError(told), uri)}")
    return done.stdout


def copied(script: str) -> Copied:
    """Raises ValueError for rows that do not fit their columns."""
    tables = Copied()
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
    parts, value = iter(text), ""
    for character in parts:
        if character == "\\":
            following = next(parts, "")
            character = ESCAPES.get(following, following)
        value += character
    return value
