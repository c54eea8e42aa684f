"""A project made by an earlier release, brought to the installed one: its dvc.yaml, dvc.lock and versions.yaml.

Up to 0.1 the versions that stages depend on were read from a source file of a clone. The same numbers are in
versions.yaml now, so dvc.lock is told where they lie, and nothing becomes stale by it.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from flows.project import versions
from flows.project.versions import PIPELINE, VERSIONS
from flows.settings.template import template
from mmrl_core.errors import UserError
from mmrl_core.files import write_bytes

DVC_YAML, DVC_LOCK, NEWER = Path("dvc.yaml"), Path("dvc.lock"), Path("dvc.yaml.new")
FORMER = "mmrl_core/__init__.py"
AGAIN = {
    "DATA_VERSION": "prepare, and what follows from changed shards",
    "METHOD_VERSION": "tune, train, evaluate and the baselines",
    "EVALUATION_VERSION": "tune, evaluate and the baselines",
}  # what runs again where a version moved


class Upgraded(NamedTuple):
    """The files that were written; what runs again and why, a line a version; dvc.yaml.new where dvc.yaml is the
    user's own and the release's is another."""

    written: list[str]
    stale: list[str]
    newer: str | None


def upgrade(folder: Path = Path()) -> Upgraded:
    """Bring a project to the installed release. Raises UserError where there is none.

    A dvc.yaml with changes of its owner's keeps them; the release's is then written beside it, if that is another than
    the one that the project was last brought to.
    """
    if not (folder / DVC_YAML).is_file():
        raise UserError(f"{folder / DVC_YAML} is not there, so this is no project; `mmrl init` makes one")
    before = _recorded(folder)
    wanted = {DVC_LOCK: _lock(folder)} | _pipeline(folder, before)
    wanted[VERSIONS] = versions.document(template("stages.yaml"))
    written = [path for path, content in wanted.items() if content is not None and _put(folder / path, content)]
    moved = before or versions.installed()
    stale = [f"{name} {moved[name]} -> {number}: {AGAIN[name]} run again"
             for name, number in versions.installed().items() if moved[name] != number]  # fmt: skip
    return Upgraded(list(map(str, written)), stale, str(NEWER) if NEWER in wanted else None)


def _recorded(folder: Path) -> dict[str, Any] | None:
    """What versions.yaml says; None where it is none."""
    with contextlib.suppress(UserError):
        return versions.recorded(folder)
    return None


def is_former(folder: Path = Path()) -> bool:
    """Whether dvc.lock says where versions lay before, and dvc.yaml where they are now: `dvc repro` would then take
    every result for stale."""
    lock, stages = folder / DVC_LOCK, folder / DVC_YAML
    if not lock.is_file() or not stages.is_file():
        return False
    return FORMER.encode() in lock.read_bytes() and FORMER.encode() not in stages.read_bytes()


def move_lock(folder: Path = Path()) -> None:
    """Have dvc.lock say where versions are now, if it is a former one."""
    if is_former(folder) and (content := _lock(folder)):
        _put(folder / DVC_LOCK, content)


def _lock(folder: Path) -> bytes | None:
    """dvc.lock with each mapping that is named by the former file named by versions.yaml; None where there is none."""
    path = folder / DVC_LOCK
    if not path.is_file():
        return None
    lines = path.read_bytes().splitlines(keepends=True)
    return b"".join(_renamed(line) if line.strip() == f"{FORMER}:".encode() else line for line in lines)


def _pipeline(folder: Path, before: dict[str, Any] | None) -> dict[Path, bytes]:
    """dvc.yaml, and dvc.yaml.new where a person has to put the two together."""
    ours, found = template("stages.yaml"), (folder / DVC_YAML).read_bytes()
    moved = b"".join(_renamed(line) if line.strip().startswith(f"- {FORMER}:".encode()) else line
                     for line in found.splitlines(keepends=True))  # fmt: skip
    known = before and before.get(PIPELINE)
    if known == hashlib.sha256(found).hexdigest():
        return {DVC_YAML: ours}
    if moved == ours or known == hashlib.sha256(ours).hexdigest():
        return {DVC_YAML: moved}
    return {DVC_YAML: moved, NEWER: ours}


def _renamed(line: bytes) -> bytes:
    return line.replace(FORMER.encode(), str(VERSIONS).encode())


def _put(path: Path, content: bytes) -> bool:
    """Whether the file had to be written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    write_bytes(path, content)
    return True
