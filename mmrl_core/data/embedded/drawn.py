"""What the drawn datasets share: the list of their images, and an image as a function of its path."""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from mmrl_core.data.splits import Item


def splits(class_names: list[str], counts: dict[str, int]) -> tuple[list[Item], list[Item], list[Item]]:
    """Train, val and test items of images that are not drawn yet; `counts` are those of a class."""
    train, val, test = (_items(class_names, split, counts[split]) for split in ("train", "val", "test"))
    return train, val, test


def _items(class_names: list[str], split: str, count: int) -> list[Item]:
    return [
        Item(f"{split}/{name.replace(' ', '_')}/{number:03d}.png", label, name)
        for label, name in enumerate(class_names)
        for number in range(count)
    ]


def generator(key: str, item: Item) -> np.random.Generator:
    """The random numbers of one image of a dataset, the same wherever and whenever it is drawn."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{key}/{item.path}".encode()).digest()[:8], "big"))


def reader(key: str, draw: Callable[[np.random.Generator, Item], np.ndarray]) -> Callable[[Item], bytes]:
    """Gives an item's PNG, drawn as uint8 (height, width) or (height, width, 3)."""

    def read(item: Item) -> bytes:
        encoded = io.BytesIO()
        Image.fromarray(draw(generator(key, item), item)).save(encoded, format="PNG")
        return encoded.getvalue()

    return read
