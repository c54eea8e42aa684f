"""Views of an image: what the tower sees in training (a function of seed, epoch and item alone) and in testing.

B images, S side of the square view in pixels.
"""

import hashlib
import threading
from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from mmrl_core.data.images import decode
from mmrl_core.data.squares import INTERPOLATIONS, RESIZE_MODES, ViewSettings, test_pixels
from mmrl_core.deferred import import_deferring

__all__ = [
    "INTERPOLATIONS", "RESIZE_MODES", "ViewSettings", "decode", "test_view", "test_views", "train_view", "train_views",
]  # fmt: skip

transforms = import_deferring("torchvision.transforms", "torchvision")
F, InterpolationMode = transforms.functional, transforms.InterpolationMode

CROP_SCALE = (0.5, 1.0)  # of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's default
FLIP_PROBABILITY = 0.5

_rng_lock = threading.Lock()  # torchvision draws from torch's one global CPU generator


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
    """(3, S, S) float32, normalised: the image as the resize mode brings it to the square (`squares.py`)."""
    return torch.from_numpy(test_pixels(image, settings))


def train_views(images: Sequence[Image], settings: ViewSettings, seed: int, epoch: int, items: Sequence[str]) -> Tensor:
    """(B, 3, S, S) float32: `train_view` of every image under its own item name."""
    pairs = zip(images, items, strict=True)
    return torch.stack([train_view(image, settings, seed, epoch, item) for image, item in pairs])


def test_views(images: Sequence[Image], settings: ViewSettings) -> Tensor:
    """(B, 3, S, S) float32: `test_view` of every image."""
    return torch.stack([test_view(image, settings) for image in images])


def _normalise(image: Image, settings: ViewSettings) -> Tensor:
    return F.normalize(F.to_tensor(image), settings.mean, settings.std, inplace=True)
