"""`mmrl restore`: a store as an archive has it. Everything in the archive is checked before anything is touched; then
come the files, then the database, then a look at what is there now.
"""

import contextlib
import filecmp
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from flows.maintenance import archive
from flows.maintenance.archive import Saved
from flows.maintenance.backup import check_files, copy_files, told
from flows.maintenance.databases import Content, SavedVersion, in_file, in_store, kind_of, load
from flows.project.paths import STATE
from flows.tracking.locks import exclusive
from flows.tracking.places import ROOT, is_below, local_path, rebase
from flows.tracking.redaction import printable
from flows.tracking.store import database_file, lock, store_errors
from mmrl_core.errors import UserError

ORDINARY = re.compile(r"[\w.-]+")  # names of models that `mmrl register` makes


def restore(file: Path, uri: str, *, overwrite: bool = False, artifacts: Iterable[str] = ()) -> dict[str, Any]:
    """Restore the store's database, and the files of versions where the database says they lie (for a sqlite store that
    is below its folder); the number of versions.

    `artifacts` are locations, besides the store's own, below which files may be written. Raises UserError, with nothing
    changed, for an archive that is damaged or of the other kind of database, and for a store that holds something
    unless `overwrite`.
    """
    kind = kind_of(uri)
    if not file.is_file():
        raise UserError(f"there is no archive {file}; name a file that `mmrl backup` wrote")
    database = database_file(uri)
    place = (database.parent if database else Path.cwd()) / STATE / "aside" / "restore"
    with told(f"{file} could not be restored to {printable(uri)}"), _staging(uri, place) as folder:
        saved = archive.unpack(file, folder)
        if saved.kind != kind:
            raise UserError(f"{file} holds a {saved.kind} database, tracking.uri names a {kind} one; set another")
        if database:
            _rebase(saved.dump, database.parent)
        content, present = in_file(kind, saved.dump), in_store_or_damaged(uri, overwrite)
        _check_revision(file, content)
        _check_versions(file, saved, content)
        _check_target(uri, content, present, overwrite)
        _check_locations(uri, content, present, artifacts)
        with _writers_away(uri, [*content.versions, *(present.versions if present else [])]):
            for version in content.versions:
                _put_files(uri, saved.files[version.name, version.version], version.location, folder)
            load(uri, saved.dump)
        _verify(uri, content, folder)
    return {"versions": len(content.versions)}


@contextlib.contextmanager
def _staging(uri: str, folder: Path) -> Iterator[Path]:
    """An empty folder beside the store, for one restore at a time; that of a killed one goes first."""
    with lock(uri, "restore"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def in_store_or_damaged(uri: str, overwrite: bool) -> Content | None:
    """What the store holds; one whose database is damaged has to be moved away by a person."""
    try:
        return in_store(uri)
    except UserError as error:
        raise UserError(f"what is at {printable(uri)} is not replaced: {error}") from None


def _rebase(dump: Path, folder: Path) -> None:
    """Make the dump name the folder that it is restored to."""
    import sqlite3

    try:
        with closing(sqlite3.connect(dump)) as connection:
            rebase(connection, folder)
    except sqlite3.Error as error:
        raise UserError(f"the archive's database is no whole sqlite database ({error}); use another backup") from error


def _check_revision(file: Path, content: Content) -> None:
    """Say that a store of an older MLflow has to be upgraded before it is used. Raises UserError for a newer one."""
    from flows.tracking import schema

    if content.revision == schema.head():
        return
    if content.revision is None or not schema.known(content.revision):
        raise UserError(
            f"{file} holds the database of a newer MLflow (revision {content.revision}); install that one to restore it"
        )
    print(
        f"{file} holds the database of an older MLflow (revision {content.revision}); to use it with the one that is "
        "installed, run `mmrl backup FILE --upgrade-store` afterwards",
        file=sys.stderr,
    )


def _check_versions(file: Path, saved: Saved, content: Content) -> None:
    """Every version of the database has its files in the archive, as they were registered, and the other way round."""
    for version in content.versions:
        files = saved.files.get((version.name, version.version))
        if files is None:
            raise UserError(f"{file} has no files of version {version.version} of {version.name}; use another backup")
        check_files(files, version)
    known = {(version.name, version.version) for version in content.versions}
    if not saved.of_an_older_release and (more := sorted(saved.files.keys() - known)):
        raise UserError(f"{file}: version {more[0][1]} of {more[0][0]} is not in its database; use another backup")


def _check_target(uri: str, content: Content, present: Content | None, overwrite: bool) -> None:
    if present and present.used and not overwrite:
        raise UserError(f"the store {printable(uri)} is not empty; restore elsewhere, or give --overwrite")
    if present and present.revision != content.revision and not database_file(uri):
        raise UserError(
            f"the archive's database has the schema {content.revision}, {printable(uri)} has {present.revision}; "
            "restore into an empty database"
        )


def _check_locations(uri: str, content: Content, present: Content | None, more: Iterable[str]) -> None:
    """Every version's files lie below the store's own folder, or a location that the caller named."""
    database = database_file(uri)
    own = (
        [(database.parent / ROOT).as_uri()]
        if database
        else [Path.cwd().as_uri(), *(present.locations if present else [])]
    )
    for version in content.versions:
        if not any(_lies_below(version.location, root) for root in (*own, *more)):
            raise UserError(
                f"version {version.version} of {version.name} has its files at {printable(version.location)}, which is "
                f"below no folder of this store; if they belong there, say so: --artifacts LOCATION"
            )


def _lies_below(location: str, root: str) -> bool:
    if path := local_path(root):
        return is_below(location, path)
    parts = location.split("/")
    return location.startswith(root.rstrip("/") + "/") and ".." not in parts and "%2e" not in location.lower()


@contextlib.contextmanager
def _writers_away(uri: str, versions: Iterable[SavedVersion]) -> Iterator[None]:
    """Hold the locks of everything that changes these models."""
    names = sorted({version.name for version in versions if ORDINARY.fullmatch(version.name)})
    with contextlib.ExitStack() as held:
        for name in names:
            for what in ("release", "promotion", "registry"):  # in the order in which a release takes them
                held.enter_context(exclusive(uri, f"{what}-{name}"))
        yield


def _put_files(uri: str, files: Path, location: str, staging: Path) -> None:
    """Put a version's files where the database says that they are: whole, or as it was."""
    target = local_path(location)
    if target is None:
        with store_errors(uri):
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            get_artifact_repository(location, tracking_uri=uri).log_artifacts(str(files))
        return
    if target.is_dir() and _are_same(files, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    replaced = staging / "replaced"
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        _move(target, replaced)
    _move(files, target)


def _move(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError:  # another file system: copied beside, then renamed
        beside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(source, beside)
        os.rename(beside, target)
        shutil.rmtree(source)


def _are_same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (one, other)]
    files = [name for name in names[0] if (one / name).is_file()]
    return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, files, shallow=False)[1:])


def _verify(uri: str, content: Content, folder: Path) -> None:
    """Look at the store as it is now: every version is there, and its files are what was registered."""
    present = in_store(uri)
    if present is None or present.versions != content.versions:
        raise UserError(f"{printable(uri)} does not hold what was restored: another process changes it; restore again")
    for place, version in enumerate(content.versions):
        files = local_path(version.location) or folder / "verified" / str(place)
        if local_path(version.location) is None:
            copy_files(uri, version.location, files)
        check_files(files, version)
