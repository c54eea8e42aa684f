"""Prepared examples as a model sees them: decoded, and relabelled from 0 within the classes at hand."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from mmrl_core.data.images import decode
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.pictures import DECODED, Decoded, Pictures
from mmrl_core.data.shards import Example, read_manifest, stream_examples
from mmrl_core.protocols import Half, labels_of

AHEAD = 4  # images that a thread decodes at a time: decoded, a chunk of 32 photographs of 12 megapixels takes 1.5 GB


class ImageSet(NamedTuple):
    """Images with labels into `class_names`."""

    items: list[str]  # keys: what augmentation and order depend on
    images: Sequence[Image]
    labels: list[int]
    class_names: list[str]
    template: str
    digests: list[str] | None = None  # of the encoded images


def image_set(
    examples: Iterable[Example], labels: list[int], class_names: list[str], template: str, budget: int = DECODED
) -> ImageSet:
    """The examples whose label is among `labels`, in their order; position in `labels` becomes the new label.

    Every image is decoded once; of what that gives at most `budget` bytes are kept, the rest is decoded when it is
    asked for. Raises UserError naming the first image that cannot be decoded.
    """
    position = {label: index for index, label in enumerate(labels)}
    mine: list[Example] = []
    pictures, digests = Pictures(budget), list[str]()

    def row(example: Example) -> tuple[Example, Image, str]:
        return example, decode(example.image, example.path), sha256(example.image).hexdigest()

    for example, image, digest in map_in_order(row, (one for one in examples if one.label in position), AHEAD):
        mine.append(example)
        digests.append(digest)
        pictures.keep(digest, image)
    return ImageSet(
        [example.key for example in mine], Decoded(pictures, mine, digests),
        [position[example.label] for example in mine], [class_names[label] for label in labels], template, digests,
    )  # fmt: skip


def read_set(folder: str | Path, split: str, halves: Sequence[Half], template: str) -> ImageSet:
    """One split of a prepared few-shot folder: the classes of these halves in label order, the images of the first
    half before those of the second. Raises as `stream_examples` does, before anything is decoded."""
    manifest = read_manifest(folder)
    streams = [stream_examples(folder, split, half) for half in halves]
    return image_set(chain.from_iterable(streams), labels_of(manifest, halves), manifest["class_names"], template)
