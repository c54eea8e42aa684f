"""`mmrl restore`: a store as an archive has it. Everything in the archive is checked before anything is touched; then
come the files, then the database, then a look at what is there now.
"""

import contextlib
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import Timeout

from flows.maintenance import archive
from flows.maintenance.archive import Saved
from flows.maintenance.backup import told
from flows.maintenance.databases import Content, SavedVersion, in_file, in_store, is_same, kind_of, load
from flows.maintenance.staging import staging
from flows.maintenance.version_files import (
    check_files,
    check_target,
    copy_files,
    destination_of,
    folder_of,
    lies_below,
    put_files,
    where,
)
from flows.project.paths import STATE
from flows.tracking.locks import exclusive
from flows.tracking.places import ROOT, rebase
from flows.tracking.redaction import printable
from flows.tracking.schema import head, known
from flows.tracking.store import database_file, lock
from mmrl_core.errors import Damaged, UserError

ORDINARY = re.compile(r"[\w.-]+")  # names of models that `mmrl register` makes


def restore(file: Path, uri: str, *, overwrite: bool = False, artifacts: Iterable[str] = ()) -> dict[str, Any]:
    """Restore the store's database, and the files of versions where the database says they lie (for a sqlite store that
    is below its folder); the number of versions.

    `artifacts` are locations, besides the store's own, below which files may be written. Raises UserError, with nothing
    changed, for an archive that is damaged or of the other kind of database, and for a store that holds something else
    unless `overwrite`.
    """
    kind, database = kind_of(uri), database_file(uri)
    if not file.is_file():
        raise UserError(f"there is no archive {file}; name a file that `mmrl backup` wrote")
    place = (database.parent if database else Path.cwd()) / STATE / "aside"
    with told(f"{file} could not be restored to {printable(uri)}"), _one_at_a_time(uri), staging(place) as folder:
        saved = archive.unpack(file, folder)
        if saved.kind != kind:
            raise UserError(f"{file} holds a {saved.kind} database, tracking.uri names a {kind} one; set another")
        _check_versions(file, saved, in_file(kind, saved.dump))
        if database:
            _rebase(saved.dump, database.parent)
        content = in_file(kind, saved.dump)
        _check_locations(uri, content, _in_store(uri), artifacts)
        with _writers_away(uri, [*content.versions, *_versions_in(uri)]):
            _check_target(uri, saved, content, overwrite)
            for version in content.versions:
                check_target(uri, saved.files[version.key], version)
            _replace(uri, saved, content)
            _verify(uri, content, folder)
    if content.revision != head():
        print(
            "the restored store is an older MLflow's; `mmrl backup FILE --upgrade-store` upgrades it", file=sys.stderr
        )
    return {"versions": len(content.versions)}


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    try:
        with lock(uri, "restore"):
            yield
    except Timeout:
        raise UserError("another restore of this store is running; wait for it or end it, then repeat") from None


def _in_store(uri: str) -> Content | None:
    """What the store holds; a database that is damaged, or another program's, has to be moved away by a person."""
    try:
        return in_store(uri)
    except UserError as error:
        raise UserError(f"what is at {printable(uri)} is not replaced: {error}") from None


def _versions_in(uri: str) -> list[SavedVersion]:
    present = _in_store(uri)
    return present.versions if present else []


def _rebase(dump: Path, folder: Path) -> None:
    """Make the dump name the folder that it is restored to."""
    try:
        with closing(sqlite3.connect(dump)) as connection:
            rebase(connection, folder)
    except (sqlite3.Error, TypeError, ValueError, AttributeError) as error:  # a location is no text, or no location
        raise Damaged(f"the archive's database is not that of an MLflow store ({error}); use another backup") from error


def _check_versions(file: Path, saved: Saved, content: Content) -> None:
    """Every version of the database has its files in the archive, as they were registered, and the other way round."""
    if content.revision is None or not known(content.revision):
        raise UserError(
            f"{file} was saved by a newer MLflow, or of another program's database (its tables have revision "
            f"{content.revision}); install the MLflow that made it"
        )
    for version in content.versions:
        entry = saved.entries.get(version.key)
        if entry is None or (not saved.of_an_older_release and entry.adapter_sha256 != version.adapter_sha256):
            raise Damaged(f"{file} has no files of version {version.version} of {version.name}; use another backup")
        check_files(saved.files[version.key], version)
    if not saved.of_an_older_release and (more := sorted(saved.files.keys() - {one.key for one in content.versions})):
        raise Damaged(f"{file}: version {more[0][2]} of {more[0][1]} is not in its database; use another backup")


def _check_target(uri: str, saved: Saved, content: Content, overwrite: bool) -> None:
    """A store that holds exactly what is to be restored is that of a restore that was killed late."""
    present = _in_store(uri)
    if present and present.used and not overwrite and not is_same(uri, saved.dump):
        raise UserError(f"the store {printable(uri)} is not empty; restore elsewhere, or give --overwrite")
    if present and present.revision != content.revision and not database_file(uri):
        raise UserError(
            f"the archive's database has the schema {content.revision}, {printable(uri)} has {present.revision}; "
            "restore into an empty database"
        )


def _check_locations(uri: str, content: Content, present: Content | None, more: Iterable[str]) -> None:
    """Every version's files lie below the store's own folder, or a location that the caller named."""
    database = database_file(uri)
    own = [database.parent / ROOT] if database else [Path.cwd()]
    known_to_store = present.locations if present and not database else []
    roots = [*(path.as_uri() for path in own), *known_to_store, *more, destination_of(uri) or ""]
    for version in content.versions:
        location = where(uri, version.location)
        if not any(lies_below(location, root) for root in roots if root):
            raise UserError(
                f"version {version.version} of {version.name} has its files at {printable(location)}, which is "
                "below no folder of this store; if they belong there, say so: --artifacts LOCATION"
            )


@contextlib.contextmanager
def _writers_away(uri: str, versions: Iterable[SavedVersion]) -> Iterator[None]:
    """Hold the locks of everything that changes these models."""
    names = sorted({version.name for version in versions if ORDINARY.fullmatch(version.name)})
    with contextlib.ExitStack() as held:
        for name in names:
            for what in ("release", "promotion", "registry"):  # in the order in which a release takes them
                held.enter_context(exclusive(uri, f"{what}-{name}"))
        yield


def _replace(uri: str, saved: Saved, content: Content) -> None:
    """Put the files into place, then the database; where that fails, what was there comes back."""
    with contextlib.ExitStack() as undo:
        in_order = sorted(content.versions, key=lambda version: version.location)  # a folder before what is in it
        for place, version in enumerate(in_order):
            aside = saved.dump.with_name(f"replaced-{place}")
            put_files(uri, saved.files[version.key], version.location, aside, undo.callback)
        load(uri, saved.dump)
        undo.pop_all()


def _verify(uri: str, content: Content, folder: Path) -> None:
    """Look at the store as it is now: every version is there, and its files are what was registered."""
    present = in_store(uri)
    if present is None or present.versions != content.versions:
        raise UserError(f"{printable(uri)} does not hold what was restored: another process changes it; restore again")
    for place, version in enumerate(content.versions):
        files = folder_of(where(uri, version.location)) or folder / "verified" / str(place)
        if folder_of(where(uri, version.location)) is None:
            copy_files(uri, version.location, files)
        check_files(files, version)
