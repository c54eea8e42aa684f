"""Images as files of a folder, with the state that tells one version of a file from another."""

import os
from abc import ABC, abstractmethod
from array import array
from pathlib import Path
from typing import NamedTuple, Protocol

from mmrl_core.errors import UserError

LARGEST = 2**63 - 1  # of a database's integers


class State(NamedTuple):
    """A file's bytes, its time of change in ns, and its inode."""

    size: int
    mtime: int
    inode: int


def state_of(stat: os.stat_result) -> State:
    return State(stat.st_size, stat.st_mtime_ns, stat.st_ino & LARGEST)


class States:
    """The states of many files, in 24 bytes each."""

    def __init__(self) -> None:
        self.columns = array("q"), array("q"), array("q")

    def add(self, state: State) -> None:
        sizes, times, inodes = self.columns
        sizes.append(state.size)
        times.append(state.mtime)
        inodes.append(state.inode)

    def __len__(self) -> int:
        return len(self.columns[0])

    def part(self, start: int, stop: int) -> list[State]:
        return list(map(State, *(column[start:stop] for column in self.columns)))


class Content(NamedTuple):
    """An image's bytes, and the state of its file; None where the file changed while it was read."""

    image: bytes
    state: State | None


class Named(Protocol):
    """What has the path of an image, such as an item of a split."""

    @property
    def path(self) -> str: ...


class Reader(ABC):
    """Reads images by their paths below the folder `place`. Raises UserError where one cannot be read."""

    place: str

    @abstractmethod
    def read(self, path: str) -> Content: ...

    def __call__(self, item: Named) -> bytes:
        """The image's bytes alone."""
        return self.read(item.path).image


class Files(Reader):
    """Reads the files below a folder."""

    def __init__(self, root: Path):
        self.root, self.place = root, os.path.realpath(root)

    def read(self, path: str) -> Content:
        """A file's bytes. Raises UserError naming the file when it cannot be read."""
        try:
            with open(os.path.join(self.root, path), "rb", buffering=0) as file:
                before = state_of(os.fstat(file.fileno()))
                image = file.readall()
                unchanged = len(image) == before.size and state_of(os.fstat(file.fileno())) == before
        except OSError as error:
            raise UserError(f"cannot read {self.root / path} ({error.strerror}); restore the image") from None
        return Content(image, before if unchanged else None)
