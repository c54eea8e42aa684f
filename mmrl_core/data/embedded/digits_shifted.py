"""Four domain shifts of `digits`: the same scans and splits, changed on purpose; test images only.

For domain generalisation in small: an adapter trained on `digits` meets inverted ink, noise, turned pages and bare
outlines. A picture is a function of its path, so every installation makes the same ones.
"""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from mmrl_core.data.embedded import digits
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item

NOISE = 0.25  # standard deviation, of the range of grey levels
# Identity of the shifts: write any other text here when a picture would come out differently. This one is a digest of
# the code that made them before the identity was written down, so that data prepared then stays up to date.
SHIFTS_ID = "d7405f9929f2b59e87bb4fa40a72feef71188184786a5d5fa65f1a89444c02cb"
TURN = (15.0, 40.0)  # degrees, either way

Shift = Callable[[Image.Image, np.random.Generator], Image.Image]


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) / 255 + rng.normal(0, NOISE, image.size[::-1])
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def _rotated(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    angle = rng.uniform(*TURN) * rng.choice([-1, 1])
    return image.rotate(angle, Image.Resampling.BICUBIC)


def _outlines(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Dark contour lines on white, as a pencil sketch has them."""
    grown, shrunk = image.filter(ImageFilter.MaxFilter(3)), image.filter(ImageFilter.MinFilter(3))
    edges = np.asarray(grown).astype(int) - np.asarray(shrunk)
    return Image.fromarray((255 - np.clip(1.5 * edges, 0, 255)).astype(np.uint8))


SHIFTS: dict[str, Shift] = {
    "digits_inverted": lambda image, rng: ImageOps.invert(image),
    "digits_noisy": _noisy,
    "digits_rotated": _rotated,
    "digits_outlines": _outlines,
}


def open_source(key: str) -> Source:
    """The dataset: the test items of `digits`, shifted; no train or val items."""
    source, shift = digits.open_source(), SHIFTS[key]

    def read(item: Item) -> bytes:
        seed = int.from_bytes(hashlib.sha256(f"{key}/{item.path}".encode()).digest()[:8], "big")
        with Image.open(io.BytesIO(source.read(item))) as image:
            shifted = shift(image.convert("L"), np.random.default_rng(seed))
        encoded = io.BytesIO()
        shifted.save(encoded, format="PNG")
        return encoded.getvalue()

    return Source(key, source.templates[:1], source.class_names, [], [], source.test, reader=read)


def fingerprint(key: str) -> dict[str, str]:
    """Digest of the scans and of what is done to them."""
    facts = f"{key}{digits.fingerprint()['digest']}{SHIFTS_ID}"
    return {"dataset": key, "digest": hashlib.sha256(facts.encode()).hexdigest()}
