"""The files of a registered version: where they lie, copied from and put there, and checked as a load checks them."""

import contextlib
import errno
import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.maintenance.databases import SavedVersion
from flows.registry.model_files import check_model
from flows.tracking.places import ROOT, is_below, local_path
from flows.tracking.redaction import printable
from flows.tracking.store import database_file, store_errors, transfer
from mmrl_core.errors import UserError

PROXIED = "mlflow-artifacts:/"  # what an MLflow server hands out from its own folder or bucket
DESTINATION = "MLFLOW_ARTIFACTS_DESTINATION"  # the server's own variable for that
OF_THE_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # errors that say nothing about a version


class PlaceFailed(Exception):
    """What is written to is full or cannot be written."""


def where(uri: str, location: str) -> str:
    """The location of files that can be read without an MLflow server. Raises UserError where there is none."""
    if not location.startswith(PROXIED):
        return location
    path, destination = location.removeprefix(PROXIED), destination_of(uri)
    if destination is None:
        raise UserError(
            f"its files are handed out by an MLflow server; set {DESTINATION} to the folder or bucket that this server "
            "has, as it does"
        )
    if path.startswith("/") or ".." in path.split("/"):
        raise UserError(f"its location {printable(location)} is none below {DESTINATION}")
    return f"{destination.rstrip('/')}/{path}"


def destination_of(uri: str) -> str | None:
    """Where the MLflow server of a store keeps what it hands out; by default beside a sqlite file."""
    told, database = os.environ.get(DESTINATION), database_file(uri)
    if told:
        return told if ":" in told else Path(told).absolute().as_uri()
    return (database.parent / ROOT).as_uri() if database else None


def lies_below(location: str, root: str) -> bool:
    """Whether a location is below another one, and does not climb."""
    with contextlib.suppress(ValueError):  # neither can be one
        if path := local_path(root):
            return is_below(location, path)
        climbs = ".." in location.split("/") or "%2e" in location.lower() or {"?", "#", "\\"} & set(location)
        return location.startswith(root.rstrip("/") + "/") and not climbs
    return False


def folder_of(location: str) -> Path | None:
    """The folder of a location on this machine; None for any other."""
    try:
        return local_path(location)
    except ValueError as error:
        raise UserError(f"its location {printable(location)} is none ({error})") from None


def check_files(folder: Path, version: SavedVersion) -> None:
    """Check a version's files as a load does; of one that mmrl did not register, that there are any."""
    if version.adapter_sha256 is not None:
        check_model(folder, version.adapter_sha256, f"{version.name}/{version.version}")
    elif not any(path.is_file() for path in folder.rglob("*")):
        raise UserError("it has no files")


def copy_files(uri: str, location: str, folder: Path) -> None:
    """Copy the files at a location into a new folder, whatever the location's last name is. Raises UserError, or
    OSError where the new folder cannot be written."""
    location = where(uri, location)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if source := folder_of(location):
        _copy_folder(source, folder)
        return
    with store_errors(uri), transfer(), TemporaryDirectory(dir=folder.parent) as aside:
        from mlflow.artifacts import download_artifacts

        Path(download_artifacts(artifact_uri=location, dst_path=aside, tracking_uri=uri)).rename(folder)


def _copy_folder(source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise UserError(f"its folder {source} is gone")
    try:
        shutil.copytree(source, folder, copy_function=_copy_file)
    except shutil.Error as error:  # of every file that could not be read
        file, _, why = error.args[0][0]
        raise UserError(f"its file {file} cannot be read ({why})") from None
    except PlaceFailed as error:
        raise error.__cause__ or error from None


def _copy_file(source: str, target: str) -> str:
    try:
        return shutil.copyfile(source, target)
    except OSError as error:
        if error.errno in OF_THE_PLACE:
            raise PlaceFailed from error  # copytree would go on
        raise


def check_target(uri: str, files: Path, version: SavedVersion) -> None:
    """Raises UserError where putting a version's files into place would remove others than its own."""
    target = folder_of(where(uri, version.location))
    if target is None or not os.path.lexists(target):
        return
    own = {str(path.relative_to(files)) for path in files.rglob("*")}
    others = [path for path in target.rglob("*") if str(path.relative_to(target)) not in own]
    if others or not target.is_dir():
        raise UserError(
            f"{others[0] if others else target} is none of the files of version {version.version} of {version.name} "
            "that go there; move it away, then repeat"
        )


def put_files(uri: str, files: Path, location: str, aside: Path, undo: Callable[..., object]) -> None:
    """Put a version's files where the database says that they are, whole; what was there goes `aside`. `undo` gets
    what to call to have it as before, the last first; what an object store has is not undone."""
    location = where(uri, location)
    target = folder_of(location)
    if target is None:
        with store_errors(uri), transfer():
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            get_artifact_repository(location, tracking_uri=uri).log_artifacts(str(files))
        return
    if target.is_dir() and _are_same(files, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        _move(target, aside)
        undo(_move, aside, target)
    _move(files, target)
    undo(_move, target, files)


def _move(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            shutil.copytree(source, beside, copy_function=shutil.copyfile)
            os.rename(beside, target)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        shutil.rmtree(source)


def _are_same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (one, other)]
    files = [name for name in names[0] if (one / name).is_file()]
    return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, files, shallow=False)[1:])
