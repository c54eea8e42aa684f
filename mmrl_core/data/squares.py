"""An image as the square that the tower sees in testing, by Pillow and NumPy alone.

S side of the square view in pixels.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import PIL.Image
from PIL.Image import Image, Resampling

if TYPE_CHECKING:
    import numpy as np

LONG = 10  # beyond that many times the short side an image is cropped before it is scaled
RESIZE_MODES = ("shortest", "squash", "longest")
INTERPOLATIONS = ("bicubic", "bilinear")


class ViewSettings(NamedTuple):
    """How a backbone's weights want images: S in pixels, per channel the mean and standard deviation of values in
    [0, 1], the way to the square in testing (one of RESIZE_MODES), and one of INTERPOLATIONS."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"


def square(image: Image, settings: ViewSettings) -> Image:
    """S x S: the image as the resize mode brings it to the square, as CLIP and open_clip do.

    `shortest` scales the short side to S and crops the centre, `squash` scales both sides to S, `longest` scales the
    long side to S and puts black around.
    """
    way = {"shortest": _cropped, "squash": _squashed, "longest": _padded}[settings.resize_mode]
    return way(image, settings.size, Resampling[settings.interpolation.upper()])


def test_pixels(image: Image, settings: ViewSettings) -> "np.ndarray":
    """(3, S, S) float32, normalised, without PyTorch."""
    import numpy as np

    rows = np.asarray(square(image, settings)).transpose(2, 0, 1)
    pixels = np.ascontiguousarray(rows, np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (settings.mean, settings.std))
    pixels /= np.float32(255)
    pixels -= mean
    pixels /= std
    return pixels


def _cropped(image: Image, size: int, resampling: Resampling) -> Image:
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if max(image.size) > LONG * short:
        return _scaled_part(image, (width, height), left, top, size, resampling)
    return image.resize((width, height), resampling).crop((left, top, left + size, top + size))


def _scaled_part(image: Image, whole: tuple[int, int], left: int, top: int, size: int, resampling: Resampling) -> Image:
    """What lies at (left, top) of the image scaled to `whole`, without making all of that: of an image of 1 x 20,000
    it would be gigabytes. The same pixels but for rounding: the two directions are scaled one after the other in the
    order that Pillow takes for the whole image, across first unless a tall image shrinks."""
    (first, last, start, stop), (low, high, begin, end) = (
        _source(side, scaled, at, size) for side, scaled, at in zip(image.size, whole, (left, top), strict=True)
    )
    part = image.crop((first, low, last, high))
    if image.width < image.height > whole[1]:
        down = part.resize((part.width, size), resampling, (0, begin, part.width, end))
        return down.resize((size, size), resampling, (start, 0, stop, size))
    across = part.resize((size, part.height), resampling, (start, 0, stop, part.height))
    return across.resize((size, size), resampling, (0, begin, size, end))


def _source(side: int, scaled: int, at: int, size: int) -> tuple[int, int, float, float]:
    """Of a side, what the `size` pixels from `at` on of its scaled form are made of: from which pixel to which, with
    all that the filters reach, and where therein they begin and end."""
    begin, end = at * side / scaled, (at + size) * side / scaled
    reach = 3 * math.ceil(max(1, side / scaled))
    first, last = max(0, math.floor(begin) - reach), min(side, math.ceil(end) + reach)
    return first, last, begin - first, end - first


def _squashed(image: Image, size: int, resampling: Resampling) -> Image:
    return image.resize((size, size), resampling)


def _padded(image: Image, size: int, resampling: Resampling) -> Image:
    ratio = max(image.size) / size
    width, height = (max(1, round(side / ratio)) for side in image.size)
    square = PIL.Image.new("RGB", (size, size))
    square.paste(image.resize((width, height), resampling), ((size - width) // 2, (size - height) // 2))
    return square
