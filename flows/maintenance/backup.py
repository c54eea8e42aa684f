"""`mmrl backup`: a store's database and the files of every registered version in one archive."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows.maintenance import archive
from flows.maintenance.databases import SavedVersion, dump, kind_of
from flows.project.outputs import atomic_output
from flows.registry.model_files import check_model
from flows.tracking.places import local_path, settle
from flows.tracking.store import database_file, store_errors
from mmrl_core.errors import Failed, UserError


def backup(uri: str, file: Path) -> dict[str, Any]:
    """Write the archive under another name, then rename it; the number of its versions and its size in bytes.

    The database is read in one transaction, the files after it, each version's checked as a load does. Raises UserError
    where the archive exists or a program is missing, Failed where versions are damaged.
    """
    if file.exists():
        raise UserError(f"{file} exists; name a new file, or remove it first")
    kind, database = kind_of(uri), database_file(uri)
    if database:
        if not database.exists():
            raise UserError(f"there is no MLflow store at {database}; run `mmrl register` first or set tracking.uri")
        settle(database)
    with told(f"the archive {file} could not be written"), atomic_output(file) as path:
        content = path.with_name("content")
        content.mkdir()
        found = dump(uri, content / archive.DATABASE)
        _copy_versions(uri, found.versions, content)
        archive.pack(content, path, kind, found.revision, found.versions)
    return {"versions": len(found.versions), "bytes": file.stat().st_size}


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


def check_files(folder: Path, version: SavedVersion) -> None:
    """Check a version's files as a load does; of one that mmrl did not register, that there are any."""
    if version.adapter_sha256 is not None:
        check_model(folder, version.adapter_sha256, f"{version.name}/{version.version}")
    elif not any(folder.iterdir()):
        raise UserError("it has no files")


def copy_files(uri: str, location: str, folder: Path) -> None:
    """Copy the files at a location into a new folder, whatever the location's last name is. Raises UserError."""
    if location.startswith("mlflow-artifacts:"):
        raise UserError(
            "its files are handed out by an MLflow server alone, whose folder or bucket a backup of the database does "
            "not reach; save that beside it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    if source := local_path(location):
        if not source.is_dir():
            raise UserError(f"its folder {source} is gone")
        shutil.copytree(source, folder)
        return
    with store_errors(uri), TemporaryDirectory(dir=folder.parent) as aside:
        from mlflow.artifacts import download_artifacts

        Path(download_artifacts(artifact_uri=location, dst_path=aside, tracking_uri=uri)).rename(folder)
