"""Images are read once: digests come from the store where a file is as it was, and what was decoded is not again.

A file is known by its size, time of change and inode. One that changed in the last seconds before it was read is not
relied on: it may change once more within the same tick of the clock.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from importlib import metadata
from typing import NamedTuple

from PIL import Image

from mmrl_core import DATA_VERSION
from mmrl_core.data.foreign import reads_heif
from mmrl_core.data.images import check
from mmrl_core.data.known.files import Content, Reader, States
from mmrl_core.data.known.store import Row, Store
from mmrl_core.data.parallel import CHUNK, map_in_order
from mmrl_core.errors import UserError

RACY = 2 * 10**9  # ns: coarser than the times of change of any file system in use
LOOKED_UP = 1024  # names at a time
SMALL = 16_384  # bytes below which an image is small


class Examined(NamedTuple):
    """The digest of an image's bytes, and what is wrong with it, "" for nothing or where it was not to be decoded."""

    sha256: bytes
    problem: str


Work = tuple[str, Examined | int]  # a path, and what is known of it, or the bytes that are to be read


class Known:
    """The images of a reader. Without a store nothing is known: each is read and decoded whenever it is asked for."""

    def __init__(self, reader: Reader, store: Store | None = None):
        self.reader, self.store = reader, store

    def examine(self, paths: Sequence[str], states: States, key: str | None = None) -> Iterator[Examined | UserError]:
        """Each image's digest, in order, or the error that it cannot be read; each decoded where the `key` of its
        dataset is given. Sorted `paths` are looked up quickly. What was read is kept, also when this ends early."""
        try:
            parts = self._looked_up(paths, states, key)
            for part in map_in_order(partial(self._examined, key), parts, size=1, small=_is_small):
                yield from part
        finally:
            self.flush()

    def _looked_up(self, paths: Sequence[str], states: States, key: str | None) -> Iterator[list[Work]]:
        """A few paths at a time, each with what is known of it."""
        wanted = decoder() if key else None
        for start in range(0, len(paths), LOOKED_UP):
            part = paths[start : start + LOOKED_UP]
            sizes, times, inodes = states.part(start, start + LOOKED_UP)
            each = zip(sizes, times, inodes, strict=True)
            known = self.store.digests(self.reader.place, part, each, wanted) if self.store else [None] * len(part)
            work: list[Work] = [
                (path, Examined(sha256, "") if sha256 else self.reader.size(path, size))
                for path, sha256, size in zip(part, known, sizes, strict=True)
            ]
            yield from (work[at : at + CHUNK] for at in range(0, len(work), CHUNK))

    def _examined(self, key: str | None, part: list[Work]) -> list[Examined | UserError]:
        return [self._read(path, key) if isinstance(known, int) else known for path, known in part]

    def _read(self, path: str, key: str | None) -> Examined | UserError:
        """What an image is found to be."""
        try:
            content = self.reader.read(path)
        except UserError as error:
            return error
        problem = _problem(content.image, f"{path} of {key}") if key else ""
        sha256 = hashlib.sha256(content.image).digest()
        self._keep(path, content, sha256, decoder() if key and not problem else "")
        return Examined(sha256, problem)

    def recall(self, paths: Sequence[str]) -> dict[str, Row]:
        """What is known of a few images, for `check`."""
        return self.store.pick(self.reader.place, paths) if self.store else {}

    def check(self, path: str, name: str, row: Row | None) -> bytes:
        """An image's bytes, which can be decoded: those of which `row` says so are not decoded again. Raises UserError,
        with that name, where they cannot."""
        content = self.reader.read(path)
        if row is None or row.state != content.state or row.decoder != decoder():
            check(content.image, name)
            if self.store:
                self._keep(path, content, hashlib.sha256(content.image).digest(), decoder())
        return content.image

    def flush(self) -> None:
        """Keep what was found out so far."""
        if self.store:
            self.store.flush()

    def _keep(self, path: str, content: Content, sha256: bytes, by: str) -> None:
        if self.store and content.state and content.state.mtime < time.time_ns() - RACY:
            self.store.put(self.reader.place, path, Row(content.state, sha256, by))


def _is_small(part: list[Work]) -> bool:
    return sum(known for _, known in part if isinstance(known, int)) < SMALL * len(part)


def decoder() -> str:
    """What decodes images here: another may find others whole."""
    heif = f", pillow-heif {_version('pillow-heif')}" if reads_heif() else ""
    return f"data {DATA_VERSION}, pillow {_version('pillow')}{heif}, at most {Image.MAX_IMAGE_PIXELS} pixels"


_version = cache(metadata.version)


def _problem(image: bytes, name: str) -> str:
    try:
        check(image, name)
    except UserError as error:
        return str(error)
    return ""
