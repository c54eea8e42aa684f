"""`mmrl backup`: a store's database and the files of every registered version in one archive."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.maintenance import archive
from flows.maintenance.databases import SavedVersion, dump, kind_of
from flows.maintenance.staging import remove_left, staging
from flows.maintenance.version_files import check_files, copy_files
from flows.tracking.places import settle
from flows.tracking.store import database_file
from mmrl_core.errors import Failed, UserError


def backup(uri: str, file: Path) -> dict[str, Any]:
    """Write the archive under another name, then rename it; the number of its versions and its size in bytes.

    The database is read in one transaction, the files after it, each version's checked as a load does. Raises UserError
    where the archive exists or a program is missing, Failed where versions are damaged.
    """
    _check_is_new(file)
    kind, database = kind_of(uri), database_file(uri)
    if database:
        if not database.exists():
            raise UserError(f"there is no MLflow store at {database}; run `mmrl register` first or set tracking.uri")
        settle(database)
    with told(f"the archive {file} could not be written"), staging(file.absolute().parent) as folder:
        content = folder / "content"
        content.mkdir()
        saved = dump(uri, content / archive.DATABASE)
        _copy_versions(uri, saved.versions, content)
        archive.pack(content, folder / "archive", kind, saved.revision, saved.versions)
        _check_is_new(file)  # another backup may have been faster
        os.replace(folder / "archive", file)
    return {"versions": len(saved.versions), "bytes": file.stat().st_size}


def _check_is_new(file: Path) -> None:
    if file.exists():
        remove_left(file.absolute().parent)
        raise UserError(f"{file} exists; name a new file, or remove it first")


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be written, into one line."""
    try:
        yield
    except OSError as error:
        raise Failed(f"{what}: {error.strerror or error}; make room there, or choose another place") from error


def _copy_versions(uri: str, versions: list[SavedVersion], content: Path) -> None:
    """Copy every version's files below artifacts/. Raises Failed naming all that are not as they were registered."""
    damaged = []
    for place, version in enumerate(versions):
        folder = content / archive.folder_of(place)
        try:
            copy_files(uri, version.location, folder)
            check_files(folder, version)
        except UserError as error:
            damaged.append(f"version {version.version} of {version.name}: {error}")
    if damaged:
        more = f" (and {len(damaged) - 3} more)" if len(damaged) > 3 else ""
        raise Failed(
            f"{len(damaged)} of {len(versions)} versions cannot be saved: {'; '.join(damaged[:3])}{more}; "
            "restore them from an older backup or delete them in MLflow, then repeat"
        )
