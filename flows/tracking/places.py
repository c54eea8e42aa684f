"""Where the artifacts of a sqlite store lie: in mlartifacts/ beside the database, also after the folder was moved.

MLflow writes down absolute locations, so a project that is moved or copied would read, write and delete files in the
folder that it came from.
"""

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mmrl_core.errors import UserError

ROOT = "mlartifacts"
COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
           ("model_versions", "storage_location"), ("model_versions", "source"))  # fmt: skip
PATIENCE = 60.0  # seconds that a write of another process is waited for
_said: set[str] = set()  # locations outside of the project that this process has named


class Moved(NamedTuple):
    """Locations of a database that name another folder: how many, and the folder of one."""

    locations: int
    folder: Path


class Root(NamedTuple):
    """A folder `mlartifacts` that locations of a column name, and what they name below it."""

    table: str
    column: str
    location: str
    below: list[str]


def local_path(location: str) -> Path | None:
    """The path that MLflow takes a `file:` URI or an absolute path for, whose escapes it decodes too; None for every
    other location."""
    if not location.startswith(("file:", "/")):
        return None
    path = url2pathname(urlsplit(location).path if location.startswith("file:") else location)
    return None if "\0" in path else Path(path)


def is_below(location: str, root: Path) -> bool:
    """Whether a location is local and lies below a folder, links followed."""
    path = local_path(location)
    return path is not None and ".." not in path.parts and root.resolve() in path.resolve().parents


def settle(database: Path) -> None:
    """Make a database that was moved name its own folder, and say so in one line. Raises UserError where it cannot be
    written."""
    folder = database.parent
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            moved = bool(_moved(connection, folder))
    except sqlite3.Error:  # what it is that is wrong with it, whoever opens it next says better
        return
    if not moved:
        return
    try:
        with closing(sqlite3.connect(database, timeout=PATIENCE)) as connection:
            was = rebase(connection, folder, _moved)
    except sqlite3.Error as error:
        raise UserError(
            f"{database} was moved and names another folder than {folder}, which cannot be put right ({error}); "
            "make it writable"
        ) from error
    if was:
        print(
            f"the store {database} was moved: {was.locations} locations that named {was.folder} name {folder} now",
            file=sys.stderr,
        )


def rebase(
    connection: sqlite3.Connection, folder: Path, choose: Callable[[sqlite3.Connection, Path], list[Root]] | None = None
) -> Moved | None:
    """Make every local location below a folder `mlartifacts`, or those that `choose` returns, lie in the one in
    `folder`, in one transaction; None where all did."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        elsewhere = (choose or _elsewhere)(connection, folder)
        for table, column, old, _ in elsewhere:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (_own(folder, old), len(old) + 1, len(old) + 1, f"{old}/"),
            )
    if not elsewhere:
        return None
    was = local_path(elsewhere[0].location)
    assert was is not None
    return Moved(sum(len(root.below) for root in elsewhere), was.parent)


def _own(folder: Path, other: str) -> str:
    """The location of the `mlartifacts` in a folder, written as another one is."""
    root = (folder / ROOT).absolute()
    return root.as_uri() if other.startswith("file:") else str(root).replace("%", "%25")


def _moved(connection: sqlite3.Connection, folder: Path) -> list[Root]:
    """`_elsewhere` without the folders that people chose: which are there, while nothing of theirs lies in this one."""
    roots = _elsewhere(connection, folder)
    here = {root.location for root in roots if any(_exists(_own(folder, root.location) + each) for each in root.below)}
    return [root for root in roots if root.location in here or not _exists(root.location)]


def _exists(location: str) -> bool:
    path = local_path(location)
    return path is not None and path.exists()


def _elsewhere(connection: sqlite3.Connection, folder: Path) -> list[Root]:
    """Where locations name another folder's `mlartifacts`."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    own = tuple(f"{_own(folder, form)}/" for form in ("file:", "/"))
    roots: dict[tuple[str, str, str], list[str]] = {}
    for table, column in COLUMNS:
        query = f"""SELECT {column} FROM {table} WHERE typeof({column}) = 'text' AND instr({column}, '/{ROOT}/') > 0
                    AND substr({column}, 1, {len(own[0])}) != ? AND substr({column}, 1, {len(own[1])}) != ?"""
        for (location,) in connection.execute(query, own) if table in tables else ():
            root = _root_of(location)
            if root:
                roots.setdefault((table, column, root), []).append(location.removeprefix(root))
    other = {root for *_, root in roots if not _is_same(local_path(root), folder / ROOT)}
    return [Root(*key, below) for key, below in roots.items() if key[2] in other]


def _root_of(location: str) -> str | None:
    """The part of a local location up to its last folder `mlartifacts`; None where it is not local or climbs."""
    path = local_path(location)
    if path is None or ".." in path.parts:
        return None
    return location[: location.rindex(f"/{ROOT}/")] + f"/{ROOT}"


def _is_same(one: Path | None, other: Path) -> bool:
    """Whether both are one folder, which may be seen by two paths; compared by what they lie in, since they need not be
    there yet."""
    if one is None:
        return False
    try:
        return one.parent.samefile(other.parent)
    except OSError:
        return False


def say_outside(what: str, location: str, database: Path) -> None:
    """Say once in a process that artifacts go to a local folder outside of the store's and the working directory."""
    if (path := outside(location, database)) and location not in _said:
        _said.add(location)
        print(f"artifacts of {what} go to {path}, outside of {database.parent}", file=sys.stderr)


def outside(location: str, database: Path) -> Path | None:
    """The local path of a location that lies neither below the database's folder nor below the working directory."""
    path = local_path(location)
    if path is None or any(is_below(location, folder) for folder in (database.parent, Path.cwd())):
        return None
    return path
