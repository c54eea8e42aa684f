"""The data sets by key: scikit-learn's digits, which every installation has, and the CoOp benchmark's folders."""

import hashlib
import importlib.util
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from mmrl_core.data import coop
from mmrl_core.data.splits import Item
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json, sha256_file

DIGITS = "digits"
DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGITS_TRAIN, DIGITS_VAL = 40, 20  # a class; the rest is test
ALIASES = {"flowers102": "oxford_flowers", "describable_textures": "dtd"}
IMAGE_EXTENSIONS = {"bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"}


@dataclass(frozen=True)
class Source:
    """A data set as it lies on disk: names, template, three lists of items, and a way to their bytes."""

    key: str
    template: str
    class_names: list[str]  # by label
    train: list[Item]
    val: list[Item]
    test: list[Item]
    reader: Callable[[Item], bytes]

    def items(self, split: str) -> list[Item]:
        """The items of "train", "val" or "test"."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def read(self, item: Item) -> bytes:
        """The image file's bytes as they came. Raises UserError when the file cannot be read."""
        return self.reader(item)

    def image_extension(self, item: Item) -> str:
        """The lower-case file extension, without the dot. Raises UserError when it is no image's."""
        extension = PurePosixPath(item.path).suffix[1:].lower()
        if extension not in IMAGE_EXTENSIONS:
            known = ", ".join(sorted(IMAGE_EXTENSIONS))
            raise UserError(f"{self.key}: {item.path} is no image file name; use one of the extensions {known}")
        return extension


def known_keys() -> list[str]:
    """The keys `open_source` takes, aliases left out."""
    return sorted([DIGITS, *coop.LAYOUTS])


def canonical_key(key: str) -> str:
    """The key itself, or the one it is an alias of. Raises UserError when there is no such data set."""
    key = ALIASES.get(key, key)
    if key not in known_keys():
        raise UserError(f"unknown dataset {key!r}; choose one of {', '.join(known_keys())}")
    return key


def open_source(key: str, root: str | Path) -> Source:
    """The data set of that key below the data root (which digits does not use), every image known to be there.

    Raises UserError on an unknown key, a missing folder, split file or image, and on a split file that is malformed.
    """
    key = canonical_key(key)
    return _open_digits() if key == DIGITS else _open_coop(key, root)


def fingerprint(key: str, root: str | Path) -> dict:
    """What tells one state of the raw data from another without reading an image: JSON, deterministic.

    Holds "dataset" and "digest"; for a folder also the split file's hash, the hash of one stat walk, and counts.
    """
    key = canonical_key(key)
    if key == DIGITS:
        digest = hashlib.sha256(f"{DIGITS}{sha256_file(_digits_file())}".encode()).hexdigest()
        return {"dataset": DIGITS, "digest": digest}
    facts = {"dataset": key, **coop.fingerprint(coop.LAYOUTS[key], root)}
    return {**facts, "digest": hashlib.sha256(canonical_json(facts)).hexdigest()}


def _open_coop(key: str, root: str | Path) -> Source:
    layout = coop.LAYOUTS[key]
    images, split_path = coop.locate(layout, root)
    splits = coop.read_splits(split_path)
    class_names = coop.class_names_by_label(splits, split_path)
    coop.check_images(images, split_path, splits)
    return Source(key, layout.template, class_names, **splits, reader=partial(coop.read_image, images))


def _open_digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    splits = _split_digits(digits.target.tolist())
    pixels = digits.images  # (1797, 8, 8), 0 to 16, light on dark

    def read(item: Item) -> bytes:
        return _digit_png(pixels[int(PurePosixPath(item.path).stem)])

    return Source(DIGITS, "a photo of the digit {}.", DIGIT_NAMES, **splits, reader=read)


def _split_digits(labels: list[int]) -> dict[str, list[Item]]:
    splits = {"train": [], "val": [], "test": []}
    rng = random.Random(0)
    for label, name in enumerate(DIGIT_NAMES):
        indices = [index for index, other in enumerate(labels) if other == label]
        rng.shuffle(indices)
        items = [Item(f"digits/{index:04d}.png", label, name) for index in indices]
        splits["train"] += items[:DIGITS_TRAIN]
        splits["val"] += items[DIGITS_TRAIN : DIGITS_TRAIN + DIGITS_VAL]
        splits["test"] += items[DIGITS_TRAIN + DIGITS_VAL :]
    return splits


def _digit_png(pixels) -> bytes:
    """PNG bytes of a (8, 8) digit enlarged to 32 x 32."""
    import numpy as np
    from PIL import Image

    grey = Image.fromarray(np.rint(pixels / 16 * 255).astype(np.uint8))
    encoded = io.BytesIO()
    grey.resize((32, 32), Image.Resampling.BICUBIC).save(encoded, format="PNG")
    return encoded.getvalue()


def _digits_file() -> Path:
    package = importlib.util.find_spec("sklearn").submodule_search_locations[0]  # found, not imported: that is slow
    return Path(package) / "datasets" / "data" / "digits.csv.gz"
