"""A handful of handwritten digits, and an adapter of three of them."""

import io

import pytest
from PIL import Image

import mmrl
from mmrl_core.data.catalog import open_source

TEMPLATE = "a photo of the digit {}."


def digits(classes: int = 3, images: int = 6, split: str = "train") -> dict[str, list[Image.Image]]:
    """The first images of the first classes, by class."""
    source = open_source("digits", "")
    of_class: dict[str, list[Image.Image]] = {name: [] for name in source.class_names[:classes]}
    for item in source.items(split):
        own = of_class.get(item.class_name, [])
        if item.label < classes and len(own) < images:
            own.append(Image.open(io.BytesIO(source.read(item))))
    return of_class


@pytest.fixture(scope="package")
def adapted() -> mmrl.Adapted:
    """Not to be changed."""
    return mmrl.adapt(digits(), template=TEMPLATE, epochs=4, rep_dim=32)
