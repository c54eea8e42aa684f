"""Encoded images to the pixels that fast training views are cut from: the same picture as `images.decode`, sooner.

A plain JPEG is decoded by torchvision; one much larger than any crop of it needs at a half, quarter or eighth, which
libjpeg does in less time than the whole. Everything else is decoded by `images.decode`.
"""

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from mmrl_core.data.augmentation import shortest_side
from mmrl_core.data.images import JPEG, decode, formats, is_plain, upright_size
from mmrl_core.data.quiet import reading
from mmrl_core.deferred import import_deferring

if TYPE_CHECKING:
    from numpy.typing import NDArray

REDUCTIONS = (8, 4, 2)  # what libjpeg has fast routines for


class Pixels(NamedTuple):
    """An upright image on white for training views: its pixels, maybe reduced, and the size of the whole."""

    values: "NDArray[np.uint8]"  # (H, W, 3)
    width: int
    height: int

    @classmethod
    def of(cls, image: Image.Image) -> "Pixels":
        """All of an RGB image."""
        return cls(np.asarray(image), image.width, image.height)

    def part(self, box: tuple[int, int, int, int]) -> "NDArray[np.uint8]":
        """(h, w, 3), a copy: what lies within (top, left, height, width) of the whole, to the nearest pixel here."""
        top, left, height, width = box
        down, across = self.values.shape[0] / self.height, self.values.shape[1] / self.width
        first, low = round(top * down), round(left * across)
        last, high = round((top + height) * down), round((left + width) * across)
        return np.array(self.values[first:last, low:high])


def pixels(encoded: bytes, name: str, side: int) -> Pixels:
    """The pixels of an encoded image for views of `side` pixels.

    A function of the bytes and the side: a JPEG is reduced as far as every crop keeps `side` pixels each way. Raises
    UserError as `images.decode` does.
    """
    header = _header(encoded, side) if encoded[:3] == JPEG else None
    if header is None:
        return Pixels.of(decode(encoded, name))
    if header.plain and header.reduction == 1 and (read := _by_torchvision(encoded)) is not None:
        return Pixels(read, header.width, header.height)
    return Pixels(np.asarray(decode(encoded, name, header.reduction)), header.width, header.height)


def reduction(width: int, height: int, side: int) -> int:
    """By how much an image of that size may be reduced for views of `side` pixels: 1, 2, 4 or 8 times."""
    shortest = shortest_side(width, height)
    return next((factor for factor in REDUCTIONS if shortest // factor >= side), 1)


class _Header(NamedTuple):
    plain: bool  # nothing but decoding is to be done
    reduction: int
    width: int  # of the upright image, as its height
    height: int


def _header(encoded: bytes, side: int) -> _Header | None:
    try:
        with reading(), Image.open(io.BytesIO(encoded), formats=formats(encoded)) as opened:
            width, height = upright_size(opened)
            return _Header(is_plain(opened), reduction(width, height, side), width, height)
    except Exception:  # `decode` says what is wrong
        return None


def _by_torchvision(encoded: bytes) -> "NDArray[np.uint8] | None":
    """The pixels; None where it cannot read the image."""
    import torch

    image = import_deferring("torchvision.io.image", "torchvision", "torchvision.io")
    try:
        read = image.decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), image.ImageReadMode.RGB)
    except RuntimeError:
        return None
    return np.ascontiguousarray(read.permute(1, 2, 0).numpy())
