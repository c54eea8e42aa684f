"""Images as files of a folder, with the state that tells one version of a file from another."""

import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from mmrl_core.errors import UserError

PART = 2**20  # bytes read at a time of a file that changes, or that is too large for one read
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

    def extend(self, stats: Iterable[os.stat_result]) -> None:
        """Add those that the system tells."""
        sizes, times, inodes = self.columns
        for stat in stats:
            sizes.append(stat.st_size)
            times.append(stat.st_mtime_ns)
            inodes.append(stat.st_ino & LARGEST)

    def __len__(self) -> int:
        return len(self.columns[0])

    def part(self, start: int, stop: int) -> "tuple[array[int], array[int], array[int]]":
        sizes, times, inodes = self.columns
        return sizes[start:stop], times[start:stop], inodes[start:stop]


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

    def size(self, path: str, of_file: int) -> int:
        """The image's number of bytes, by that of its file."""
        return of_file

    def __call__(self, item: Named) -> bytes:
        """The image's bytes alone."""
        return self.read(item.path).image


class Files(Reader):
    """Reads the files below a folder."""

    def __init__(self, root: Path):
        self.root, self.place = root, os.path.realpath(root)
        self._root = str(root)

    def read(self, path: str) -> Content:
        """A file's bytes. Raises UserError naming the file when it cannot be read."""
        try:
            file = os.open(os.path.join(self._root, path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                before = state_of(os.fstat(file))
                image = _all_of(file, before.size)
                unchanged = len(image) == before.size and state_of(os.fstat(file)) == before
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(f"cannot read {self.root / path} ({error.strerror}); restore the image") from None
        return Content(image, before if unchanged else None)


def _all_of(file: int, size: int) -> bytes:
    """What an open file holds, which was of that size a moment ago."""
    image = os.read(file, size + 1)
    if len(image) == size:
        return image
    parts = [image]
    while part := os.read(file, PART):
        parts.append(part)
    return b"".join(parts)
