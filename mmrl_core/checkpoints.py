"""Where a training keeps its state, so that a killed one goes on. The newest two are kept: one may be damaged."""

import io
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from mmrl_core.files import write_bytes

KEPT = 2
EVERY = 500  # steps within an epoch, beside the end of every epoch
NAME = "checkpoint-{:08d}-{:08d}.pt"  # epochs that are through, steps of the next one
log = logging.getLogger(__name__)


class Checkpoints(Protocol):
    """A store of checkpoints."""

    def save(self, content: bytes, epoch: int, step: int) -> None:
        """Keep the state after so many whole epochs and so many steps of the next one. Every worker calls it."""

    def load(self) -> Iterable[tuple[str, bytes]]:
        """What is kept, the newest first, each with a name for messages."""


class Nowhere:
    """Keeps nothing."""

    def save(self, content: bytes, epoch: int, step: int) -> None:
        pass

    def load(self) -> Iterable[tuple[str, bytes]]:
        return ()


class Folder:
    """Files in a folder, each written aside and renamed.

    It also reads what Ray Train left there, in folders of one file each, so that a run may leave its cluster.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def save(self, content: bytes, epoch: int, step: int) -> None:
        write_bytes(self.folder / NAME.format(epoch, step), content)
        for path in self._kept()[KEPT:]:
            path.unlink(missing_ok=True)

    def load(self) -> Iterator[tuple[str, bytes]]:
        foreign = self.folder.glob("checkpoint_*/*.pt")
        for path in sorted([*self._kept(), *foreign], key=lambda path: path.stat().st_mtime, reverse=True):
            yield str(path), path.read_bytes()

    def _kept(self) -> list[Path]:
        pattern = re.escape(NAME).replace(r"\{:08d\}", r"\d{8}")
        return sorted((path for path in self.folder.glob("*.pt") if re.fullmatch(pattern, path.name)), reverse=True)


def opened(where: "str | Path | Checkpoints | None") -> Checkpoints:
    """A folder's checkpoints, those given, or none."""
    if where is None:
        return Nowhere()
    return Folder(where) if isinstance(where, str | Path) else where


def pack(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def newest(checkpoints: Checkpoints, device: torch.device, keys: Iterable[str]) -> dict[str, Any] | None:
    """The newest whole state that holds `keys`; None where there is none. Nothing of it is run."""
    for name, content in checkpoints.load():
        try:
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            return {key: state[key] for key in keys}
        except Exception as error:  # whatever damage makes of it, going on from an older one is right
            log.warning("%s is damaged (%s): going back", name, type(error).__name__)
    return None
