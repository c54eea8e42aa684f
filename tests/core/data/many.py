"""Folders of very many small images, made in seconds: a few pictures, each file with a comment of its own in it."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES, SIDE = 200, 32
BEGIN, COMMENT = b"\xff\xd8", b"\xff\xfe"  # of a JPEG
SETTLED = 1_700_000_000 * 10**9  # a time of change long past: what changed just now is not yet relied on


def pictures(number: int = PICTURES, side: int = SIDE) -> list[bytes]:
    """That many different JPEGs."""
    rng, made = np.random.default_rng(0), []
    for _ in range(number):
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((side, side)).save(file, format="JPEG")
        made.append(file.getvalue())
    return made


def with_comment(jpeg: bytes, text: str) -> bytes:
    """The same picture as other bytes."""
    comment = text.encode()
    return BEGIN + COMMENT + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[len(BEGIN) :]


def fill(root: Path, images: int, classes: int, side: int = SIDE) -> Path:
    """Write that many images, no two of the same bytes, into class folders of equal size."""
    made = pictures(side=side)
    folders = [root / f"class {number:04d}" for number in range(classes)]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(images):
        path = folders[number % classes] / f"{number:07d}.jpg"
        path.write_bytes(with_comment(made[number % len(made)], f"number {number}"))
        os.utime(path, ns=(SETTLED, SETTLED))
    return root
