"""Where the artifacts of a sqlite store lie: in mlartifacts/ beside the database, also after the folder was moved.

MLflow writes down absolute locations, so a project that is moved or copied would read, write and delete files in the
folder that it came from.
"""

import sqlite3
import sys
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
            moved = bool(_elsewhere(connection, folder))
    except sqlite3.Error:  # what it is that is wrong with it, whoever opens it next says better
        return
    if not moved:
        return
    try:
        with closing(sqlite3.connect(database, timeout=PATIENCE)) as connection:
            was = rebase(connection, folder)
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


def rebase(connection: sqlite3.Connection, folder: Path) -> Moved | None:
    """Make every local location below a folder `mlartifacts` lie in the one in `folder`, in one transaction; None where
    all did."""
    new = (folder / ROOT).absolute()
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        elsewhere = _elsewhere(connection, folder)
        for table, column, old, _ in elsewhere:
            prefix = new.as_uri() if old.startswith("file:") else str(new).replace("%", "%25")
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (prefix, len(old) + 1, len(old) + 1, f"{old}/"),
            )
    if not elsewhere:
        return None
    was = local_path(elsewhere[0][2])
    assert was is not None
    return Moved(sum(count for *_, count in elsewhere), was.parent)


def _elsewhere(connection: sqlite3.Connection, folder: Path) -> list[tuple[str, str, str, int]]:
    """Table, column, the location of another folder's `mlartifacts`, and how many locations lie below that."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    own = ((folder / ROOT).absolute().as_uri() + "/", f"{(folder / ROOT).absolute()}/")
    roots: dict[tuple[str, str, str], int] = {}
    for table, column in COLUMNS:
        query = f"""SELECT {column} FROM {table} WHERE instr({column}, '/{ROOT}/') > 0
                    AND substr({column}, 1, {len(own[0])}) != ? AND substr({column}, 1, {len(own[1])}) != ?"""
        for (location,) in connection.execute(query, own) if table in tables else ():
            root = _root_of(location)
            if root:
                roots[table, column, root] = roots.get((table, column, root), 0) + 1
    other = {root for *_, root in roots if not _is_same(local_path(root), folder / ROOT)}
    return [(*key, count) for key, count in roots.items() if key[2] in other]


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
