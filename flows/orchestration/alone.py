"""One flow a folder at a time, and params.yaml as it was where a flow that changed it does not end well."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.project.outputs import claimed, locked
from flows.project.paths import STATE
from flows.project.progress import say
from flows.settings.edit import edited
from flows.settings.params import Params, load_params
from flows.settings.reading import read_text
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, write_bytes, write_json

LOCK = "flow"
NOTE = STATE / "changed-settings.json"  # what a flow that is killed leaves of params.yaml as it was


@contextlib.contextmanager
def alone(params_path: Path, changes: Sequence[str]) -> Iterator[None]:
    """Run the block with the changes (`key.path=value`) in params.yaml, while no other flow runs in this folder: it
    waits for one that does; a killed one holds nothing up.

    The changes stay where the block succeeds. Where it fails or is stopped, the file is put back; after a kill the next
    flow does so. Raises UserError for changes that are no settings.
    """
    with locked(LOCK, f"another flow is running in {Path.cwd()}"):
        _put_back("an earlier flow was killed")
        before = read_text(params_path)
        after = edited(before, params_path, changes) if changes else before
        if after == before:
            yield
            return
        write_json(NOTE, {"path": str(params_path.resolve()), "before": before, "after_sha256": _digest(after)})
        write_bytes(params_path.resolve(), after.encode())
        try:
            yield
        except BaseException:
            _put_back("the flow did not end well")
            raise
        NOTE.unlink(missing_ok=True)


def require_unchanged(params_path: Path, settings: Params) -> None:
    """Raises UserError where the file holds other settings than the flow began with: what is left would be made of
    those, and what is done already of these."""
    if load_params(params_path) != settings:
        raise UserError(f"{params_path} was changed while the flow was running; start it again, with these settings")


def put_back_left() -> None:
    """Put back what a killed flow left in params.yaml, unless another flow is running here."""
    if NOTE.exists():
        with claimed(LOCK) as free:
            if free:
                _put_back("an earlier flow was killed")


def _put_back(reason: str) -> None:
    """Put params.yaml back by the note, unless a person has changed it since; then the note is of no more use."""
    if not NOTE.exists():
        return
    with contextlib.suppress(UserError):  # a note that cannot be read, or no params.yaml any more
        note = read_json(NOTE, made_by="mmrl flow adapt", keys=("path", "before", "after_sha256"))
        if _digest(read_text(note["path"])) == note["after_sha256"]:
            write_bytes(note["path"], note["before"].encode())
            say(f"{reason}: {Path(note['path']).name} is again as it was before")
    NOTE.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
