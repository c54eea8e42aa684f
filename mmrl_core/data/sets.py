"""Prepared examples as a model sees them: decoded, and relabelled from 0 within the classes at hand."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import NamedTuple, overload

from PIL.Image import Image

from mmrl_core.data.images import decode
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.pixels import Pixels, pixels
from mmrl_core.data.shards import Example, read_manifest, stream_examples
from mmrl_core.protocols import Half, labels_of

DECODED = 2**30  # bytes of decoded images that a set keeps
PIXEL = 4  # bytes of one in Pillow's memory
AHEAD = 4  # images that a thread decodes at a time: decoded, a chunk of 32 photographs of 12 megapixels takes 1.5 GB


class ImageSet(NamedTuple):
    """Images with labels into `class_names`."""

    items: list[str]  # keys: what augmentation and order depend on
    images: Sequence[Image]
    labels: list[int]
    class_names: list[str]
    template: str
    digests: list[str] | None = None  # of the encoded images


class Decoded(Sequence[Image]):
    """The images of examples. They are kept encoded; decoded, up to `budget` bytes of all together.

    An image is decoded when it is first asked for, and again each time if there was no room to keep it.
    """

    def __init__(self, examples: Sequence[Example], budget: int = DECODED) -> None:
        self.examples, self.budget = examples, budget
        self.held = 0  # bytes of decoded images
        self._kept: dict[int, tuple[int | None, Image | Pixels]] = {}  # and the side of the views that it is kept for
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        index = range(len(self))[index]
        image = self._kept.get(index, (None, None))[1]
        if isinstance(image, Image):
            return image
        return self.keep(index, decode(self.examples[index].image, self.examples[index].path))

    def pixels(self, index: int, side: int) -> Pixels:
        """What training views of `side` pixels are cut from; kept in place of the image, of which it is the same or
        less. Whether it was kept changes no pixel."""
        known, image = self._kept.get(index, (None, None))
        if isinstance(image, Pixels) and known == side:
            return image
        made = pixels(self.examples[index].image, self.examples[index].path, side)
        self._keep(index, side, made, made.values.nbytes)
        return made

    def keep(self, index: int, image: Image) -> Image:
        """Keep a decoded image if there is room; returns it."""
        if not isinstance(self._kept.get(index, (None, None))[1], Pixels):
            self._keep(index, None, image, PIXEL * image.width * image.height)
        return image

    def _keep(self, index: int, side: int | None, image: Image | Pixels, size: int) -> None:
        with self._lock:
            before = _size(self._kept.pop(index, (None, None))[1])
            self.held -= before
            if self.held + size <= self.budget:
                self._kept[index] = (side, image)
                self.held += size


def _size(image: Image | Pixels | None) -> int:
    if image is None:
        return 0
    return image.values.nbytes if isinstance(image, Pixels) else PIXEL * image.width * image.height


def image_set(
    examples: Iterable[Example], labels: list[int], class_names: list[str], template: str, budget: int = DECODED
) -> ImageSet:
    """The examples whose label is among `labels`, in their order; position in `labels` becomes the new label.

    Every image is decoded once; of what that gives at most `budget` bytes are kept, the rest is decoded when it is
    asked for. Raises UserError naming the first image that cannot be decoded.
    """
    position = {label: index for index, label in enumerate(labels)}
    mine: list[Example] = []
    images, digests = Decoded(mine, budget), list[str]()

    def row(example: Example) -> tuple[Example, Image, str]:
        return example, decode(example.image, example.path), sha256(example.image).hexdigest()

    for example, image, digest in map_in_order(row, (one for one in examples if one.label in position), AHEAD):
        mine.append(example)
        digests.append(digest)
        images.keep(len(mine) - 1, image)
    return ImageSet(
        [example.key for example in mine], images, [position[example.label] for example in mine],
        [class_names[label] for label in labels], template, digests,
    )  # fmt: skip


def read_set(folder: str | Path, split: str, halves: Sequence[Half], template: str) -> ImageSet:
    """One split of a prepared few-shot folder: the classes of these halves in label order, the images of the first
    half before those of the second. Raises as `stream_examples` does, before anything is decoded."""
    manifest = read_manifest(folder)
    streams = [stream_examples(folder, split, half) for half in halves]
    return image_set(chain.from_iterable(streams), labels_of(manifest, halves), manifest["class_names"], template)
