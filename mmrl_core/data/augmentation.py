"""What is drawn for a training view: crop, flip and colours, a function of (seed, epoch, item) alone.

The numbers are those of torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter under that seed. Theirs
come from torch's one global generator, which threads would wait for; these from one of the view's own.
"""

import hashlib
import math
from typing import NamedTuple

import torch

CROP_SCALE = (0.5, 1.0)  # of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's default
TRIES = 10  # crops that do not fit the image are drawn again so often
FLIP_PROBABILITY = 0.5
COLOURS = ("brightness", "contrast", "saturation")
COLOUR_FACTORS = (0.6, 1.4)  # of each of these


class Draw(NamedTuple):
    """Crop (top, left, height, width in pixels), whether to flip, and factors of colours in the order to apply them."""

    box: tuple[int, int, int, int]
    flip: bool
    colours: list[tuple[str, float]]


def view_seed(seed: int, epoch: int, item: str) -> int:
    """64 bits of sha256("seed/epoch/item")."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{item}".encode()).digest()[:8], "big")


def draw(width: int, height: int, seed: int, epoch: int, item: str, augmentation: str) -> Draw:
    """What to do to an image of that many pixels. Whether it is flipped changes neither its crop nor its colours."""
    generator = torch.Generator().manual_seed(view_seed(seed, epoch, item))
    box = _crop(width, height, generator)
    flip = torch.rand(1, generator=generator).item() < FLIP_PROBABILITY
    colours = _colours(generator) if "colour" in augmentation else []
    return Draw(box, flip and "flip" in augmentation, colours)


def shortest_side(width: int, height: int) -> int:
    """Pixels of the shortest side that a crop of such an image can have."""
    return int(min(math.sqrt(CROP_SCALE[0] * CROP_RATIO[0] * width * height), width, height))


def _crop(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    low, high = torch.log(torch.tensor(CROP_RATIO))
    for _ in range(TRIES):
        area = width * height * torch.empty(1).uniform_(*CROP_SCALE, generator=generator).item()
        ratio = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top = int(torch.randint(0, height - down + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - across + 1, (1,), generator=generator))
            return top, left, down, across
    return _centre(width, height)


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest crop in the middle whose ratio may be drawn."""
    across, down = width, height
    if width / height < CROP_RATIO[0]:
        down = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        across = round(height * CROP_RATIO[1])
    return (height - down) // 2, (width - across) // 2, down, across


def _colours(generator: torch.Generator) -> list[tuple[str, float]]:
    order = torch.randperm(len(COLOURS) + 1, generator=generator).tolist()  # the hue is the fourth, which stays
    factors = [float(torch.empty(1).uniform_(*COLOUR_FACTORS, generator=generator)) for _ in COLOURS]
    return [(COLOURS[place], factors[place]) for place in order if place < len(COLOURS)]
