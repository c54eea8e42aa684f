"""Prepared examples as a model sees them: decoded, and relabelled from 0 within the classes at hand."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple, overload

from PIL.Image import Image

from mmrl_core.data.images import decode
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.shards import Example, read_manifest, stream_examples
from mmrl_core.protocols import Half, labels_of


class ImageSet(NamedTuple):
    """Images in memory with labels into `class_names`."""

    items: list[str]  # keys: what augmentation and order depend on
    images: Sequence[Image]
    labels: list[int]
    class_names: list[str]
    template: str
    digests: list[str] | None = None  # of the encoded images


class Decoded(Sequence[Image]):
    """The images of examples, each decoded when it is first asked for."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self._images: list[Image | None] = [None] * len(examples)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        image = self._images[index]
        if image is None:
            image = self._images[index] = decode(self.examples[index].image, self.examples[index].path)
        return image


class _Row(NamedTuple):
    item: str
    image: Image
    label: int
    digest: str


def image_set(examples: Iterable[Example], labels: list[int], class_names: list[str], template: str) -> ImageSet:
    """Decode the examples whose label is among `labels`, in their order; position in `labels` becomes the new label.

    Raises UserError naming the first image that cannot be decoded.
    """
    position = {label: index for index, label in enumerate(labels)}

    def row(example: Example) -> _Row:
        image = decode(example.image, example.path)
        return _Row(example.key, image, position[example.label], sha256(example.image).hexdigest())

    rows = list(map_in_order(row, (example for example in examples if example.label in position)))
    return ImageSet(
        [row.item for row in rows], [row.image for row in rows], [row.label for row in rows],
        [class_names[label] for label in labels], template, [row.digest for row in rows],
    )  # fmt: skip


def read_set(folder: str | Path, split: str, halves: Sequence[Half], template: str) -> ImageSet:
    """One split of a prepared few-shot folder: the classes of these halves in label order, the images of the first
    half before those of the second. Raises as `stream_examples` does, before anything is decoded."""
    manifest = read_manifest(folder)
    streams = [stream_examples(folder, split, half) for half in halves]
    return image_set(chain.from_iterable(streams), labels_of(manifest, halves), manifest["class_names"], template)
