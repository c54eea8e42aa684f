"""Images that stay where they are: places in the user's own tar files, and shards that list such places.

A listed shard has a line of JSON for each example, in written order: its key, path, label and class name, the tar that
holds its image by its path below the dataset's folder, where the bytes lie there, and their digest.
"""

import hashlib
import os
from collections.abc import Container, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mmrl_core.data.known.files import Content, state_of
from mmrl_core.data.own.records import check_name
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json
from mmrl_core.parsing import parse_json

REPLACE = "replace the tar file"


class Place(NamedTuple):
    """Where the bytes of a tar member lie."""

    tar: Path
    offset: int
    size: int

    def read(self) -> Content:
        """The member's bytes, with the state of the tar. Raises UserError when that is gone or shorter than it was."""
        try:
            with open(self.tar, "rb", buffering=0) as file:
                state = state_of(os.fstat(file.fileno()))
                return Content(self.read_from(file), state)
        except OSError as error:
            raise UserError(f"cannot read {self.tar} ({error.strerror}); restore it") from None

    def read_from(self, tar: BinaryIO | FileIO) -> bytes:
        """The member's bytes from the open tar."""
        content = os.pread(tar.fileno(), self.size, self.offset)
        if len(content) < self.size:
            raise UserError(f"{self.tar} ends too early; {REPLACE}")
        return content


def line(key: str, item: dict[str, Any], place: Place, root: Path, image: bytes) -> bytes:
    """An example's line; `item` has its path, label and class name."""
    at = {"tar": place.tar.relative_to(root).as_posix(), "offset": place.offset, "size": place.size}
    return canonical_json({"key": key, **item, **at, "sha256": hashlib.sha256(image).hexdigest()}) + b"\n"


def listed(shard: Path, root: Path, wanted: Container[str] | None = None) -> Iterator[tuple[dict[str, Any], bytes]]:
    """What a listed shard's lines say of each example, or of those whose paths are wanted, and its image, one after the
    other. Raises UserError naming a tar that is gone or was changed, ValueError or LookupError where a line is not as
    it is written here."""
    with open(shard, "rb") as lines:
        for one in map(parse_json, lines):
            if wanted is not None and one["path"] not in wanted:
                continue
            tar, offset, size, sha256 = (one.pop(name) for name in ("tar", "offset", "size", "sha256"))
            check_name(tar, str(shard))
            image = Place(root / tar, offset, size).read().image
            if hashlib.sha256(image).hexdigest() != sha256:
                was = f"{root / tar} holds another image at byte {offset} than when {shard} was prepared"
                raise UserError(f"{was}; restore it, or prepare again")
            yield one, image
