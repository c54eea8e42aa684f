"""The registry in one file: the store's database and the files of every registered version, and back again.

The archive is an uncompressed tar: `database` (a sqlite file, or pg_dump's plain SQL), `artifacts/` by model and
version, and `manifest.json` with the sha256 of each.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.tracking.redaction import first_line, printable
from flows.tracking.store import connect, database_file, store_errors
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, sha256_file, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE, MANIFEST, ARTIFACTS = "database", "manifest.json", "artifacts"
KINDS = ("sqlite", "postgresql")


def backup(uri: str, file: Path) -> dict[str, Any]:
    """Write the archive under another name, then rename it; the number of its versions and its size in bytes.

    The database is read in one transaction, the files after it. Raises UserError where the archive exists or a program
    is missing.
    """
    if file.exists():
        raise UserError(f"{file} exists; name a new file, or remove it first")
    kind = _kind(uri)
    client = connect(uri, create=False)
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.absolute().parent) as name:
        folder = Path(name) / "content"
        folder.mkdir()
        _dump(uri, folder / DATABASE)
        versions = _download_versions(client, uri, folder)
        sums = {str(path.relative_to(folder)): sha256_file(path) for path in _files(folder)}
        write_json(folder / MANIFEST, {"kind": kind, "versions": versions, "sha256": sums})
        with tarfile.open(Path(name) / "archive", "w") as archive:
            for path in _files(folder):
                archive.add(path, str(path.relative_to(folder)), recursive=False)
        os.replace(Path(name) / "archive", file)
    return {"versions": len(versions), "bytes": file.stat().st_size}


def restore(file: Path, uri: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Restore the store's database, and the files of versions where the database says they lie (for a sqlite store that
    is below the folder that it was saved in); the number of versions.

    Raises UserError, with nothing changed, for an archive that is damaged or of the other kind of database, and for a
    store that holds something unless `overwrite`.
    """
    kind = _kind(uri)
    target = database_file(uri)
    place = target.parent if target else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=place) as name:
        folder = Path(name)
        manifest = _unpacked(file, folder)
        if manifest["kind"] != kind:
            raise UserError(f"{file} holds a {manifest['kind']} database, tracking.uri names a {kind} one; set another")
        if not overwrite and _holds_something(uri):
            raise UserError(f"the store {printable(uri)} is not empty; restore elsewhere, or give --overwrite")
        _load(uri, folder / DATABASE)
        _upload_versions(uri, folder, manifest["versions"])
    return {"versions": len(manifest["versions"])}


def _kind(uri: str) -> str:
    """One of KINDS. Raises UserError for a store that is no database at hand, such as a tracking server."""
    kind = uri.partition(":")[0].partition("+")[0]
    if kind not in KINDS or (kind == "sqlite" and database_file(uri) is None):
        raise UserError(
            f"a backup needs the store's own database, not {printable(uri)}; set tracking.uri to its sqlite or "
            "PostgreSQL URI, such as --set tracking.uri=postgresql://..."
        )
    return kind


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _dump(uri: str, path: Path) -> None:
    if database := database_file(uri):
        with store_errors(uri):
            _copy_sqlite(database, path)
        return
    _postgres("pg_dump", uri, "--no-owner", "--no-privileges", "--clean", "--if-exists", f"--file={path}")


def _load(uri: str, path: Path) -> None:
    if database := database_file(uri):
        with store_errors(uri):
            _copy_sqlite(path, database)
        return
    _postgres("psql", uri, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction", f"--file={path}")


def _copy_sqlite(source: Path, target: Path) -> None:
    """SQLite's online backup: consistent, even while other processes read or write."""
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=60)) as old,
            contextlib.closing(sqlite3.connect(target, timeout=60)) as new,
        ):
            old.backup(new)
    except sqlite3.Error as error:
        raise UserError(f"the database {source} could not be copied to {target}: {error}; is it whole?") from error


def _postgres(program: str, uri: str, *options: str) -> None:
    """Run one of PostgreSQL's programs on the database of a URI; the password travels in the environment."""
    from sqlalchemy.engine import make_url

    if not shutil.which(program):
        raise UserError(f"{program} is not on your PATH; install PostgreSQL's client programs (postgresql-client)")
    url = make_url(uri)
    names = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password,
             "PGDATABASE": url.database, "PGCONNECT_TIMEOUT": 10}  # fmt: skip
    where = {name: str(value) for name, value in names.items() if value is not None}
    done = subprocess.run([program, *options], env=os.environ | where, capture_output=True, text=True)
    if done.returncode:
        reason = first_line(RuntimeError(done.stderr), uri)
        raise UserError(f"{program} on {printable(uri)} failed: {reason}; nothing was changed")


def _download_versions(client: "MlflowClient", uri: str, folder: Path) -> list[dict[str, str]]:
    """Copy every registered version's files below artifacts/; the name, version and folder of each."""
    versions: list[dict[str, str]] = []
    token: str | None = None
    with store_errors(uri):
        from mlflow.artifacts import download_artifacts

        while token is None or token:
            page = client.search_model_versions(page_token=token)
            for entry in page:
                where = f"{ARTIFACTS}/{len(versions)}"
                source = client.get_model_version_download_uri(entry.name, str(entry.version))
                (folder / where).mkdir(parents=True)
                download_artifacts(artifact_uri=source, dst_path=str(folder / where), tracking_uri=uri)
                versions.append({"name": entry.name, "version": str(entry.version), "folder": where})
            token = page.token or ""
    return versions


def _unpacked(file: Path, folder: Path) -> dict[str, Any]:
    """Extract an archive into `folder`; its manifest. Raises UserError where the files are not as it says."""
    try:
        with tarfile.open(file, "r:") as archive:
            for member in _regular_files(archive, file):
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None  # as it is for what is no regular file
                with source, open(path, "xb") as target:
                    shutil.copyfileobj(source, target)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{file} is no backup that can be read ({error}); name another") from error
    manifest = read_json(folder / MANIFEST, made_by="mmrl backup", keys=("kind", "versions", "sha256"))
    sums = {str(path.relative_to(folder)): sha256_file(path) for path in _files(folder)}
    del sums[MANIFEST]
    wrong = sorted(
        name for name in sums.keys() | manifest["sha256"].keys() if sums.get(name) != manifest["sha256"].get(name)
    )
    if wrong or DATABASE not in sums:
        raise UserError(f"{file} is damaged: {(wrong or [DATABASE])[0]} is not what was saved; use another backup")
    return manifest


def _regular_files(archive: tarfile.TarFile, file: Path) -> Iterator[tarfile.TarInfo]:
    """The archive's members. Raises UserError for one that is no regular file, or would lie outside the folder."""
    for member in archive:
        parts = Path(member.name).parts
        if not member.isreg() or Path(member.name).is_absolute() or ".." in parts:
            raise UserError(f"{file} holds {member.name!r}, which is no plain file below it; it is no backup of mmrl's")
        yield member


def _holds_something(uri: str) -> bool:
    """Whether the store has a registered model or a run."""
    database = database_file(uri)
    if database and not database.exists():
        return False
    with store_errors(uri):
        client = connect(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return bool(client.search_registered_models(max_results=1) or client.search_runs(experiments, max_results=1))


def _upload_versions(uri: str, folder: Path, versions: list[dict[str, str]]) -> None:
    """Store the files of the versions that the database has: one registered during the backup may not be in it."""
    with store_errors(uri):
        client = connect(uri)  # before the import below: it sets what MLflow reads when it is imported
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        for entry in versions:
            if not client.search_model_versions(f"name = '{entry['name']}' and version_number = {entry['version']}"):
                continue
            where = client.get_model_version_download_uri(entry["name"], entry["version"])
            get_artifact_repository(where, tracking_uri=uri).log_artifacts(str(folder / entry["folder"]))
