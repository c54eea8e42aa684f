"""Views of an image: what the tower sees in training (a function of seed, epoch and item alone) and in testing.

B images, S side of the square view in pixels. Views are made as bytes, and become numbers on the tower's device.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch
from PIL import ImageEnhance
from PIL.Image import Image, Resampling
from torch import Tensor

from mmrl_core.data.augmentation import Draw, draw, view_seed
from mmrl_core.data.images import decode
from mmrl_core.data.pixels import Pixels
from mmrl_core.data.squares import INTERPOLATIONS, RESIZE_MODES, ViewSettings, square, test_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "INTERPOLATIONS", "RESIZE_MODES", "ViewSettings", "decode", "normalised", "test_squares", "test_view", "test_views",
    "train_view", "train_views", "view_seed",
]  # fmt: skip

CROP_AND_FLIP = "crop+flip"
ENHANCERS: dict[str, Callable] = {
    "brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color,
}  # fmt: skip


def train_view(
    image: Image | Pixels, settings: ViewSettings, seed: int, epoch: int, item: str, views: str = "fast",
    augmentation: str = CROP_AND_FLIP,
) -> Tensor:  # fmt: skip
    """(3, S, S) uint8 of an RGB image: random resized crop, flip half the time, colours, as far as `augmentation` says;
    of `none` it is the square of testing.

    `views`: `fast` scales as torch does, `pillow` as Pillow. A pure function: the same arguments give the same view in
    any process, and torch's global RNG is left as it was.
    """
    if augmentation == "none":
        return test_square(_image(image), settings)
    drawn = draw(image.width, image.height, seed, epoch, item, augmentation)
    view = _by_torch(image, drawn, settings) if views == "fast" else _by_pillow(_image(image), drawn, settings)
    if drawn.colours:
        view = np.asarray(_coloured(PIL.Image.fromarray(view), drawn))
    if drawn.flip:
        view = view[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))


def train_views(
    images: Sequence[Image | Pixels], settings: ViewSettings, seed: int, epoch: int, items: Sequence[str],
    views: str = "fast", augmentation: str = CROP_AND_FLIP,
) -> Tensor:  # fmt: skip
    """(B, 3, S, S) uint8: `train_view` of every image under its own item name."""
    pairs = zip(images, items, strict=True)
    return torch.stack([train_view(image, settings, seed, epoch, item, views, augmentation) for image, item in pairs])


def normalised(views: Tensor, settings: ViewSettings) -> Tensor:
    """(B, 3, S, S) or (3, S, S) float32 as the tower takes them, where the views lie; float32 ones are returned.

    Of the square of `test_squares` it is `test_view` to the bit on a CPU.
    """
    if views.dtype != torch.uint8:
        return views
    mean, std = _moments(tuple(settings.mean), tuple(settings.std), views.device)
    return views.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=8)
def _moments(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """On the device once: to copy them there would wait for it at every batch."""
    with torch.inference_mode(False):
        return torch.tensor(mean, device=device)[:, None, None], torch.tensor(std, device=device)[:, None, None]


def test_square(image: Image, settings: ViewSettings) -> Tensor:
    """(3, S, S) uint8: the image as the resize mode brings it to the square (`squares.py`)."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(square(image, settings)).transpose(2, 0, 1)))


def test_squares(images: Sequence[Image], settings: ViewSettings) -> Tensor:
    """(B, 3, S, S) uint8: `test_square` of every image; `normalised` makes `test_views` of it."""
    return torch.stack([test_square(image, settings) for image in images])


def test_view(image: Image, settings: ViewSettings) -> Tensor:
    """(3, S, S) float32, normalised: the image as the resize mode brings it to the square (`squares.py`)."""
    return torch.from_numpy(test_pixels(image, settings))


def test_views(images: Sequence[Image], settings: ViewSettings) -> Tensor:
    """(B, 3, S, S) float32: `test_view` of every image."""
    return torch.stack([test_view(image, settings) for image in images])


def _image(image: Image | Pixels) -> Image:
    return image if isinstance(image, Image) else PIL.Image.fromarray(image.values)


def _by_torch(image: Image | Pixels, drawn: Draw, settings: ViewSettings) -> "NDArray[np.uint8]":
    """(S, S, 3): torch's kernel for bytes takes them channels last, and keeps one thread busy."""
    if isinstance(image, Image):
        top, left, height, width = drawn.box
        part = np.array(image.crop((left, top, left + width, top + height)))
    else:
        part = image.part(drawn.box)
    pixels = torch.from_numpy(part).permute(2, 0, 1)[None]
    side = [settings.size, settings.size]
    view = torch.nn.functional.interpolate(pixels, side, mode=settings.interpolation, antialias=True)
    return view[0].permute(1, 2, 0).numpy()


def _by_pillow(image: Image, drawn: Draw, settings: ViewSettings) -> "NDArray[np.uint8]":
    """(S, S, 3), as torchvision's transforms of Pillow's images make it."""
    top, left, height, width = drawn.box
    part = image.crop((left, top, left + width, top + height))
    return np.asarray(part.resize((settings.size, settings.size), Resampling[settings.interpolation.upper()]))


def _coloured(view: Image, drawn: Draw) -> Image:
    for colour, factor in drawn.colours:
        view = ENHANCERS[colour](view).enhance(factor)
    return view
