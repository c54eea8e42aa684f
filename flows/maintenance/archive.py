"""The file that `mmrl backup` writes: an uncompressed tar of a database's dump, the files of every registered version,
and manifest.json with what they are and the sha256 of each.
"""

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from flows.maintenance.databases import Kind, SavedVersion
from mmrl_core.errors import Damaged
from mmrl_core.files import sha256_file, write_json

DATABASE, MANIFEST, ARTIFACTS = "database", "manifest.json", "artifacts"
Key = tuple[str, str, int]  # workspace, name, number of a version


class Entry(BaseModel):
    """A version in the manifest; archives of older releases say no adapter."""

    workspace: str = "default"
    name: str
    version: int
    adapter_sha256: str | None = None
    folder: Annotated[str, Field(pattern=rf"^{ARTIFACTS}/[0-9]+$")]

    @property
    def key(self) -> Key:
        return self.workspace, self.name, self.version


class Manifest(BaseModel):
    """manifest.json. Archives of older releases have no `revision`."""

    schema_version: Literal[1]
    kind: Kind
    mlflow: str | None = None
    revision: str | None = None
    versions: list[Entry]
    sha256: dict[str, str]


class Saved(NamedTuple):
    """An unpacked archive: its kind of database, its dump, what it says of each version, and each version's files."""

    kind: Kind
    dump: Path
    entries: dict[Key, Entry]
    files: dict[Key, Path]
    of_an_older_release: bool  # it may hold versions that its database does not have


def pack(content: Path, file: Path, kind: Kind, revision: str | None, versions: list[SavedVersion]) -> None:
    """Write the archive of a folder that holds the dump, and the files of each version below artifacts/ by its place in
    the list."""
    from mlflow.version import VERSION

    entries = [
        Entry(workspace=one.workspace, name=one.name, version=one.version, adapter_sha256=one.adapter_sha256,
              folder=folder_of(place))
        for place, one in enumerate(versions)
    ]  # fmt: skip
    sums = {str(path.relative_to(content)): sha256_file(path) for path in _files(content)}
    manifest = Manifest(schema_version=1, kind=kind, mlflow=VERSION, revision=revision, versions=entries, sha256=sums)
    write_json(content / MANIFEST, manifest.model_dump())
    with open(file, "xb") as target:
        with tarfile.open(fileobj=target, mode="w") as archive:
            for path in _files(content):
                archive.add(path, str(path.relative_to(content)), recursive=False)
        target.flush()
        os.fsync(target.fileno())


def folder_of(place: int) -> str:
    """Where the files of the version at that place of the list lie in an archive."""
    return f"{ARTIFACTS}/{place}"


def unpack(file: Path, folder: Path) -> Saved:
    """Extract an archive into an empty folder. Raises Damaged where it is not whole, or not as it says itself."""
    try:
        with tarfile.open(file, "r:") as archive:
            for member in _regular_files(archive, file):
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None  # as it is for what is no regular file
                with source, open(path, "xb") as target:
                    shutil.copyfileobj(source, target)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, tarfile.TarError, ValueError) as error:
        raise Damaged(f"{file} is no backup that can be read ({error}); name another") from error
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise Damaged(f"{file} is no backup of mmrl's: {MANIFEST} {_first(error)}; name another") from None
    _check_sums(file, folder, manifest.sha256)
    return _saved(file, folder, manifest)


def _first(error: FileNotFoundError | ValidationError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _regular_files(archive: tarfile.TarFile, file: Path) -> Iterator[tarfile.TarInfo]:
    """The archive's members. Raises Damaged for one that is no regular file, or that `pack` would not write there."""
    for member in archive:
        parts = PurePosixPath(member.name).parts
        known = member.name in (DATABASE, MANIFEST) or (len(parts) > 2 and parts[0] == ARTIFACTS)
        if not member.isreg() or not known or ".." in parts:
            raise Damaged(f"{file} holds {member.name!r}, which is no plain file below it; it is no backup of mmrl's")
        yield member


def _check_sums(file: Path, folder: Path, expected: dict[str, str]) -> None:
    sums = {str(path.relative_to(folder)): sha256_file(path) for path in _files(folder)}
    del sums[MANIFEST]
    wrong = sorted(name for name in sums.keys() | expected.keys() if sums.get(name) != expected.get(name))
    if wrong or DATABASE not in sums:
        raise Damaged(f"{file} is damaged: {(wrong or [DATABASE])[0]} is not what was saved; use another backup")


def _saved(file: Path, folder: Path, manifest: Manifest) -> Saved:
    """What the manifest says. Raises Damaged unless every version has a folder of its own."""
    entries = {entry.key: entry for entry in manifest.versions}
    folders = {entry.folder for entry in manifest.versions}
    if len(entries) < len(manifest.versions) or len(folders) < len(manifest.versions):
        raise Damaged(f"{file}: {MANIFEST} names a version or a folder twice; name another backup")
    older = "revision" not in manifest.model_fields_set
    files = {}
    for key, entry in entries.items():
        path = folder / entry.folder
        if not path.is_dir():
            raise Damaged(f"{file} has no files of version {entry.version} of {entry.name}; name another backup")
        files[key] = _only_folder_in(path) if older else path
    return Saved(manifest.kind, folder / DATABASE, entries, files, older)


def _only_folder_in(path: Path) -> Path:
    """Where older releases put a version's files: one level deeper, in a folder of their location's last name."""
    inside = list(path.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else path
