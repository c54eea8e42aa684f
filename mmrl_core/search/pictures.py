"""The search's images, each decoded once for all partitions and trials of a process, as far as memory allows."""

import threading
from collections.abc import Sequence
from typing import overload

from PIL.Image import Image

from mmrl_core.data.images import decode
from mmrl_core.data.shards import Example

BUDGET = 2**30  # bytes of decoded images that a process keeps


class Pictures:
    """Decoded images by the sha256 of their encoded bytes, up to `budget` bytes; the others are decoded each time.

    Any thread may ask; of several that ask for one image, one decodes it.
    """

    def __init__(self, budget: int = BUDGET):
        self.budget = budget
        self._images: dict[str, Image] = {}
        self._locks: dict[str, threading.Lock] = {}

    def of(self, example: Example, digest: str) -> Image:
        """The example's image. Raises UserError as `decode` does."""
        with self._locks.setdefault(digest, threading.Lock()):
            image = self._images.get(digest)
            return self._keep(digest, decode(example.image, example.path)) if image is None else image

    def _keep(self, digest: str, image: Image) -> Image:
        size = image.width * image.height * len(image.getbands())
        if size <= self.budget:
            self.budget -= size
            self._images[digest] = image
        return image


class Shown(Sequence[Image]):
    """The images of examples whose digests are given, out of `pictures`."""

    def __init__(self, pictures: Pictures, examples: Sequence[Example], digests: Sequence[str]):
        self.pictures, self.examples, self.digests = pictures, examples, digests

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return self.pictures.of(self.examples[index], self.digests[index])
