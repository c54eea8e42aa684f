"""The file that `mmrl backup` writes: an uncompressed tar of a database's dump, the files of every registered version,
and manifest.json with what they are and the sha256 of each.
"""

import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from flows.maintenance.databases import KINDS, SavedVersion
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, sha256_file, write_json

DATABASE, MANIFEST, ARTIFACTS = "database", "manifest.json", "artifacts"
SHA256 = re.compile("[0-9a-f]{64}")


class Saved(NamedTuple):
    """An unpacked archive: its kind of database, its dump, and each version's files by name and number."""

    kind: str
    dump: Path
    files: dict[tuple[str, int], Path]
    of_an_older_release: bool  # without the versions' sha256; it may hold versions that its database does not have


def pack(content: Path, file: Path, kind: str, revision: str | None, versions: list[SavedVersion]) -> None:
    """Write the archive of a folder that holds the dump, and the files of each version below artifacts/ by its place in
    the list."""
    listed = [
        {"name": one.name, "version": one.version, "adapter_sha256": one.adapter_sha256, "folder": folder_of(place)}
        for place, one in enumerate(versions)
    ]
    sums = {str(path.relative_to(content)): sha256_file(path) for path in _files(content)}
    write_json(content / MANIFEST, {"kind": kind, "revision": revision, "versions": listed, "sha256": sums})
    with tarfile.open(file, "w") as archive:
        for path in _files(content):
            archive.add(path, str(path.relative_to(content)), recursive=False)


def folder_of(place: int) -> str:
    """Where the files of the version at that place of the list lie in an archive."""
    return f"{ARTIFACTS}/{place}"


def unpack(file: Path, folder: Path) -> Saved:
    """Extract an archive into an empty folder. Raises UserError where it is not whole, or not as it says itself."""
    try:
        with tarfile.open(file, "r:") as archive:
            for member in _regular_files(archive, file):
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None  # as it is for what is no regular file
                with source, open(path, "xb") as target:
                    shutil.copyfileobj(source, target)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, FileNotFoundError, tarfile.TarError) as error:
        raise UserError(f"{file} is no backup that can be read ({error}); name another") from error
    manifest = read_json(folder / MANIFEST, made_by="mmrl backup", keys=("kind", "versions", "sha256"))
    _check_sums(file, folder, manifest["sha256"])
    return _saved(file, folder, manifest)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _regular_files(archive: tarfile.TarFile, file: Path) -> Iterator[tarfile.TarInfo]:
    """The archive's members. Raises UserError for one that is no regular file, or would lie outside the folder."""
    for member in archive:
        if not member.isreg() or not _is_inside(member.name):
            raise UserError(f"{file} holds {member.name!r}, which is no plain file below it; it is no backup of mmrl's")
        yield member


def _is_inside(name: str) -> bool:
    """Whether a relative path stays in the folder that it starts from."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _check_sums(file: Path, folder: Path, expected: Any) -> None:
    sums = {str(path.relative_to(folder)): sha256_file(path) for path in _files(folder)}
    del sums[MANIFEST]
    if not isinstance(expected, dict):
        raise UserError(f"{file}: the sums in {MANIFEST} are no table; it is no backup of mmrl's")
    wrong = sorted(name for name in sums.keys() | expected.keys() if sums.get(name) != expected.get(name))
    if wrong or DATABASE not in sums:
        raise UserError(f"{file} is damaged: {(wrong or [DATABASE])[0]} is not what was saved; use another backup")


def _saved(file: Path, folder: Path, manifest: dict[str, Any]) -> Saved:
    """What the manifest says, checked. Raises UserError for anything that `pack` does not write."""
    kind, versions = manifest["kind"], manifest["versions"]
    if kind not in KINDS or not isinstance(versions, list):
        raise UserError(f"{file}: {MANIFEST} is not as `mmrl backup` writes it (kind, versions); name another backup")
    files: dict[tuple[str, int], Path] = {}
    for entry in versions:
        key, place = _version(file, entry)
        path = folder / place
        if not path.is_dir() or key in files:
            raise UserError(f"{file} has no files of its own for version {key[1]} of {key[0]}; name another backup")
        files[key] = _model_in(path)
    return Saved(kind, folder / DATABASE, files, "revision" not in manifest)


def _version(file: Path, entry: Any) -> tuple[tuple[str, int], str]:
    """Name and number of a version in the manifest, and the folder of its files."""
    values = [entry.get(key) for key in ("name", "version", "folder")] if isinstance(entry, dict) else [None]
    name, version, folder = values if len(values) == 3 else (None, None, None)
    whole = isinstance(name, str) and bool(name) and isinstance(folder, str) and _is_inside(folder)
    if not whole or not str(version).isdecimal() or PurePosixPath(str(folder)).parts[0] != ARTIFACTS:
        raise UserError(f"{file}: {entry!r} in {MANIFEST} names no version and folder; it is no backup of mmrl's")
    return (str(name), int(str(version))), str(folder)


def _model_in(folder: Path) -> Path:
    """A version's own folder; archives of an older release have it in a folder of its last name."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
