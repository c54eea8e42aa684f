"""Images that stay encoded, and decoded as far as memory allows: each decoded once for all that train on it."""

from collections.abc import Sequence
from threading import Lock
from typing import overload

from PIL.Image import Image

from mmrl_core.data.images import decode
from mmrl_core.data.pixels import Pixels, pixels
from mmrl_core.data.shards import Example

DECODED = 2**30  # bytes of decoded images that are kept
PIXEL = 4  # bytes of one in Pillow's memory


class Pictures:
    """Decoded images by the sha256 of their encoded bytes, up to `budget` bytes of all together; one for which there is
    no room is decoded each time. Whether it was kept changes no pixel.

    Any thread may ask; of several that ask for one image, one decodes it.
    """

    def __init__(self, budget: int = DECODED):
        self.budget = budget
        self.held = 0  # bytes of decoded images
        self._kept: dict[str, tuple[int | None, Image | Pixels]] = {}  # and the side of the views that it is kept for
        self._locks: dict[str, Lock] = {}
        self._lock = Lock()

    def image(self, example: Example, digest: str) -> Image:
        """The example's image. Raises UserError as `decode` does."""
        with self._locks.setdefault(digest, Lock()):
            image = self._kept.get(digest, (None, None))[1]
            return image if isinstance(image, Image) else self._keep_image(digest, decode(example.image, example.path))

    def pixels(self, example: Example, digest: str, side: int) -> Pixels:
        """What training views of `side` pixels are cut from; kept in place of the image, of which it is the same or
        less. Raises as `image`."""
        with self._locks.setdefault(digest, Lock()):
            known, image = self._kept.get(digest, (None, None))
            if isinstance(image, Pixels) and known == side:
                return image
            made = pixels(example.image, example.path, side)
            self._keep(digest, side, made, made.values.nbytes)
            return made

    def keep(self, digest: str, image: Image) -> None:
        """Keep a decoded image if there is room."""
        with self._locks.setdefault(digest, Lock()):
            self._keep_image(digest, image)

    def _keep_image(self, digest: str, image: Image) -> Image:
        if not isinstance(self._kept.get(digest, (None, None))[1], Pixels):
            self._keep(digest, None, image, PIXEL * image.width * image.height)
        return image

    def _keep(self, digest: str, side: int | None, image: Image | Pixels, size: int) -> None:
        with self._lock:
            self.held -= _size(self._kept.pop(digest, (None, None))[1])
            if self.held + size <= self.budget:
                self._kept[digest] = (side, image)
                self.held += size


def _size(image: Image | Pixels | None) -> int:
    if image is None:
        return 0
    return image.values.nbytes if isinstance(image, Pixels) else PIXEL * image.width * image.height


class Decoded(Sequence[Image]):
    """The images of examples whose digests are given, out of `pictures`."""

    def __init__(self, pictures: Pictures, examples: Sequence[Example], digests: Sequence[str]) -> None:
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
        return self.pictures.image(self.examples[index], self.digests[index])

    def pixels(self, index: int, side: int) -> Pixels:
        """As `Pictures.pixels`."""
        return self.pictures.pixels(self.examples[index], self.digests[index], side)
