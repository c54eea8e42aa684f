"""Views of an image: what the tower sees in training (a function of seed, epoch and item alone) and in testing.

B images, S side of the square view in pixels.
"""

import hashlib
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import PIL.Image
import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from mmrl_core.data.images import decode
from mmrl_core.deferred import import_deferring

__all__ = ["ViewSettings", "decode", "test_view", "test_views", "train_view", "train_views"]

transforms = import_deferring("torchvision.transforms", "torchvision")
F, InterpolationMode = transforms.functional, transforms.InterpolationMode

CROP_SCALE = (0.5, 1.0)  # of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's default
FLIP_PROBABILITY = 0.5
LONG = 10  # beyond that many times the short side an image is cropped before it is scaled
RESIZE_MODES = ("shortest", "squash", "longest")
INTERPOLATIONS = ("bicubic", "bilinear")

_rng_lock = threading.Lock()  # torchvision draws from torch's one global CPU generator


class ViewSettings(NamedTuple):
    """How a backbone's weights want images: S in pixels, per channel the mean and standard deviation of values in
    [0, 1], the way to the square in testing (one of RESIZE_MODES), and one of INTERPOLATIONS."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"


def train_view(image: Image, settings: ViewSettings, seed: int, epoch: int, item: str) -> Tensor:
    """(3, S, S) float32: random resized crop, flip half the time, normalised.

    A pure function: the same arguments give the same view in any process, and torch's global RNG is left as it was.
    """
    box, flip = draw_crop_and_flip(image, seed, epoch, item)
    interpolation = InterpolationMode(settings.interpolation)
    view = F.resized_crop(image, *box, [settings.size, settings.size], interpolation, antialias=True)
    return _normalise(F.hflip(view) if flip else view, settings)


def draw_crop_and_flip(image: Image, seed: int, epoch: int, item: str) -> tuple[tuple[int, int, int, int], bool]:
    """The crop (top, left, height, width in pixels) and whether to flip, as torchvision's own transforms draw them."""
    with _rng_lock, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPU's generator too, which this block does not restore.
        torch.random.default_generator.manual_seed(view_seed(seed, epoch, item))
        box = transforms.RandomResizedCrop.get_params(image, CROP_SCALE, CROP_RATIO)
        flip = torch.rand(1).item() < FLIP_PROBABILITY
    return box, flip


def view_seed(seed: int, epoch: int, item: str) -> int:
    """64 bits of sha256("seed/epoch/item")."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{item}".encode()).digest()[:8], "big")


def test_view(image: Image, settings: ViewSettings) -> Tensor:
    """(3, S, S) float32, normalised: the image as the resize mode brings it to the square, as CLIP and open_clip do.

    `shortest` scales the short side to S and crops the centre, `squash` scales both sides to S, `longest` scales the
    long side to S and puts black around.
    """
    square = {"shortest": _cropped, "squash": _squashed, "longest": _padded}[settings.resize_mode]
    return _normalise(square(image, settings.size, Resampling[settings.interpolation.upper()]), settings)


def train_views(images: Sequence[Image], settings: ViewSettings, seed: int, epoch: int, items: Sequence[str]) -> Tensor:
    """(B, 3, S, S) float32: `train_view` of every image under its own item name."""
    pairs = zip(images, items, strict=True)
    return torch.stack([train_view(image, settings, seed, epoch, item) for image, item in pairs])


def test_views(images: Sequence[Image], settings: ViewSettings) -> Tensor:
    """(B, 3, S, S) float32: `test_view` of every image."""
    return torch.stack([test_view(image, settings) for image in images])


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


def _normalise(image: Image, settings: ViewSettings) -> Tensor:
    return F.normalize(F.to_tensor(image), settings.mean, settings.std, inplace=True)
