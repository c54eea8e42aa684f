"""Prepared examples as a model sees them: decoded, and relabelled from 0 within the classes at hand."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from mmrl_core.data.images import decode
from mmrl_core.data.shards import Example, read_examples, read_manifest


class ImageSet(NamedTuple):
    """Images in memory with labels into `class_names`."""

    items: list[str]  # keys: what augmentation and order depend on
    images: list[Image]
    labels: list[int]
    class_names: list[str]
    template: str


def image_set(examples: Iterable[Example], labels: list[int], class_names: list[str], template: str) -> ImageSet:
    """Decode the examples whose label is among `labels`; position in `labels` becomes the new label."""
    position = {label: index for index, label in enumerate(labels)}
    kept = [example for example in examples if example.label in position]
    return ImageSet(
        [example.key for example in kept],
        [decode(example.image, example.path) for example in kept],
        [position[example.label] for example in kept],
        [class_names[label] for label in labels],
        template,
    )


def read_set(folder: str | Path, split: str, half: str, template: str) -> ImageSet:
    """One split of the base or the novel classes of a prepared few-shot folder."""
    manifest = read_manifest(folder)
    examples = read_examples(folder, split, half)
    return image_set(examples, manifest[half], manifest["class_names"], template)
