"""Checkpoints, from which a killed training resumes. The newest two are kept: one may be damaged."""

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
NAME = "checkpoint-{:08d}-{:08d}.pt"  # whole epochs, steps of the next one
PATTERN = re.compile(r"checkpoint-\d{8}-\d{8}\.pt")
log = logging.getLogger(__name__)


class Checkpoints(Protocol):
    """A store of checkpoints; of several workers, only the first one's is used."""

    def save(self, content: bytes, epoch: int, step: int) -> None:
        """Keep the state after so many whole epochs and so many steps of the next one."""

    def load(self) -> Iterable[tuple[str, bytes]]:
        """What is kept, the newest first, each with a name for messages."""


class NoCheckpoints:
    """Keeps nothing."""

    def save(self, content: bytes, epoch: int, step: int) -> None:
        pass

    def load(self) -> Iterable[tuple[str, bytes]]:
        return ()


class Folder:
    """Files in a folder, each written aside and renamed.

    Their names say how far the training was: no clock orders them. Those newer than the one that was resumed from are
    damaged, or were written by a worker that is thought dead; the resumed training writes them again.
    """

    def __init__(self, folder: str | Path):
        self.folder = folder
        self._latest: list[str] = []  # the one that was resumed from, then those written

    def save(self, content: bytes, epoch: int, step: int) -> None:
        name = NAME.format(epoch, step)
        self._write(name, content)
        self._latest = [*self._latest, name][-KEPT:]
        for other in self._checkpoints():
            if other < min(self._latest):
                self._delete(other)

    def load(self) -> Iterator[tuple[str, bytes]]:
        for name in self._checkpoints():
            try:
                content = self._read(name)
            except FileNotFoundError:  # deleted by a worker that is thought dead but still runs
                continue
            self._latest = [name]
            yield f"{self.folder}/{name}", content

    def _checkpoints(self) -> list[str]:
        """Names, the newest first."""
        return sorted(filter(PATTERN.fullmatch, self._names()), reverse=True)

    def _names(self) -> Iterable[str]:
        return [path.name for path in Path(self.folder).glob("*")]

    def _read(self, name: str) -> bytes:
        return (Path(self.folder) / name).read_bytes()

    def _write(self, name: str, content: bytes) -> None:
        write_bytes(Path(self.folder) / name, content)

    def _delete(self, name: str) -> None:
        (Path(self.folder) / name).unlink(missing_ok=True)


def as_checkpoints(where: "str | Path | Checkpoints | None") -> Checkpoints:
    """A folder's checkpoints, those given, or none."""
    if where is None:
        return NoCheckpoints()
    return Folder(where) if isinstance(where, str | Path) else where


def pack(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(content: bytes, device: torch.device, keys: Iterable[str]) -> dict[str, Any]:
    """Those keys of a packed state. Raises where it is damaged or lacks one; nothing of it is run."""
    state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return {key: state[key] for key in keys}


def newest(checkpoints: Checkpoints, keys: Iterable[str]) -> bytes:
    """The newest whole state that holds `keys`, packed; no bytes where there is none."""
    for name, content in checkpoints.load():
        try:
            unpack(content, torch.device("cpu"), keys)
        except Exception as error:  # whatever damage makes of it, going on from an older one is right
            log.warning("%s is damaged (%s): going back", name, type(error).__name__)
        else:
            return content
    return b""
