"""scikit-learn's handwritten digits, which every installation has: 1,797 scans of 8 x 8, ten classes."""

import hashlib
import importlib.util
import io
import random
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item
from mmrl_core.files import sha256_file

if TYPE_CHECKING:
    import numpy as np

KEY = "digits"
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ["a photo of the digit {}.", "a photo of the number {}."]
TRAIN, VAL = 40, 20  # a class; the rest is test


def open_source(key: str = KEY) -> Source:
    """The dataset. 40 train and 20 val items a class, drawn with a fixed seed; the other 1,197 are test."""
    pixels, labels = _load()
    train, val, test = _split(labels)

    def read(item: Item) -> bytes:
        return _png(pixels[int(PurePosixPath(item.path).stem)])

    return Source(KEY, TEMPLATES, CLASS_NAMES, train, val, test, reader=read)


def fingerprint(key: str = KEY) -> dict[str, str]:
    """Digest of scikit-learn's data file."""
    return {"dataset": KEY, "digest": hashlib.sha256(f"{KEY}{sha256_file(_file())}".encode()).hexdigest()}


def _load() -> tuple["np.ndarray", list[int]]:
    """Pixels (1797, 8, 8), 0 to 16, light on dark, and labels: what sklearn.datasets reads, without its imports."""
    import numpy as np

    table = np.loadtxt(_file(), delimiter=",")  # a row an image, its label last
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int).tolist()


def _split(labels: list[int]) -> tuple[list[Item], list[Item], list[Item]]:
    train: list[Item] = []
    val: list[Item] = []
    test: list[Item] = []
    rng = random.Random(0)
    for label, name in enumerate(CLASS_NAMES):
        indices = [index for index, other in enumerate(labels) if other == label]
        rng.shuffle(indices)
        items = [Item(f"digits/{index:04d}.png", label, name) for index in indices]
        train += items[:TRAIN]
        val += items[TRAIN : TRAIN + VAL]
        test += items[TRAIN + VAL :]
    return train, val, test


def _png(pixels: "np.ndarray") -> bytes:
    """PNG bytes of a (8, 8) digit enlarged to 32 x 32."""
    import numpy as np
    from PIL import Image

    grey = Image.fromarray(np.rint(pixels / 16 * 255).astype(np.uint8))
    encoded = io.BytesIO()
    grey.resize((32, 32), Image.Resampling.BICUBIC).save(encoded, format="PNG")
    return encoded.getvalue()


def _file() -> Path:
    package = importlib.util.find_spec("sklearn")  # found, not imported: that is slow
    assert package and package.submodule_search_locations  # a requirement of this project, and a package
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
