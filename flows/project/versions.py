"""versions.yaml: the versions of this package's code that a project's results are of.

Stages depend on it as DVC params, so that results become stale when the installed package would give others, and by
nothing that lies in the package. `mmrl init` and `mmrl upgrade` write it.
"""

import hashlib
from pathlib import Path
from typing import Any

import mmrl_core
from flows.settings.reading import read_text, read_yaml
from mmrl_core.errors import UserError

VERSIONS = Path("versions.yaml")
NAMES = ("DATA_VERSION", "METHOD_VERSION", "EVALUATION_VERSION")  # of mmrl_core
PIPELINE = "PIPELINE"  # sha256 of dvc.yaml as the release has it: one that is otherwise has changes of its owner's
HEAD = """\
# The versions of the code of mmrl-ops that results here are of, and its dvc.yaml. Stages depend on them.
# `mmrl upgrade` writes this file after another release was installed.
"""


def installed() -> dict[str, int]:
    """The versions of the package that runs."""
    return {name: getattr(mmrl_core, name) for name in NAMES}


def document(pipeline: bytes) -> bytes:
    """versions.yaml of the package that runs, with its dvc.yaml."""
    values = installed() | {PIPELINE: hashlib.sha256(pipeline).hexdigest()}
    return (HEAD + "".join(f"{name}: {value}\n" for name, value in values.items())).encode()


def recorded(folder: Path = Path()) -> dict[str, Any] | None:
    """What a project's versions.yaml says; None where there is none. Raises UserError where it is no such file."""
    path = folder / VERSIONS
    if not path.exists():
        return None
    values = read_yaml(read_text(path), str(path))
    if not isinstance(values, dict) or any(not isinstance(values.get(name), int) for name in NAMES):
        raise UserError(f"{path} does not give {', '.join(NAMES)}; `mmrl upgrade` writes it anew")
    return values


def require_installed() -> None:
    """Raises UserError where the project's versions.yaml is of another release than the package that runs: what a stage
    makes would be recorded as another's."""
    values = recorded()
    if values is None:
        return
    moved = [f"{name} {values[name]}, installed {number}" for name, number in installed().items()
             if values[name] != number]  # fmt: skip
    if moved:
        raise UserError(
            f"{VERSIONS} is of another release of mmrl-ops ({'; '.join(moved)}); run `mmrl upgrade`, which says what "
            "becomes stale"
        )
