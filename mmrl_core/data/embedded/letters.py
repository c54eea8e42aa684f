"""Rendered capital letters, printed and worn: what an adapter trained on another dataset is tried on.

The backbone `tiny` was trained on renders of the same kind, so zero-shot knows them; what counts is how much of that
an adapter keeps.
"""

import hashlib
import io
from pathlib import PurePosixPath
from string import ascii_uppercase

import numpy as np
from PIL import Image

from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item
from mmrl_core.renders import glyphs

KEY = "letters"
TEMPLATES = ["a photo of the letter {}."]
CLASS_NAMES = list(ascii_uppercase)
COUNTS = {"train": 20, "val": 10, "test": 40}  # a class
# Identity of the pictures: write any other text here when one of them would be drawn differently. This one is a digest
# of the code that drew them before the identity was written down, so that data prepared then stays up to date.
PICTURES = "86d1486f6d47cc95ab7de04dec6db1303ba2b8f285bdf8e7b584fd4a01b386f7"


def open_source(key: str = KEY) -> Source:
    """The dataset; an image is a function of its path and is drawn when it is read."""
    lists = _items("train"), _items("val"), _items("test")
    return Source(KEY, TEMPLATES, CLASS_NAMES, *lists, reader=_png)


def fingerprint(key: str = KEY) -> dict[str, str]:
    """What the pictures depend on: they are drawn alike wherever `PICTURES` is the same."""
    return {"dataset": KEY, "digest": PICTURES}


def _items(split: str) -> list[Item]:
    return [
        Item(f"{split}/{name}/{number:03d}.png", label, name)
        for label, name in enumerate(CLASS_NAMES)
        for number in range(COUNTS[split])
    ]


def _png(item: Item) -> bytes:
    seed = int.from_bytes(hashlib.sha256(f"{KEY}/{PurePosixPath(item.path)}".encode()).digest()[:8], "big")
    encoded = io.BytesIO()
    Image.fromarray(glyphs.photograph(np.random.default_rng(seed), item.class_name)).save(encoded, format="PNG")
    return encoded.getvalue()
