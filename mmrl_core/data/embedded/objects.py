"""Rendered objects with compositional names ("striped red star"), seen through a camera that `tiny` never met.

Every pattern, colour and shape occurs among the base classes; the novel classes are other combinations of them. The
camera's coloured light, dirt and blur are the same for both halves: what adaptation learns of it on the base classes
can serve the novel ones.
"""

from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from mmrl_core.data.embedded import drawn
from mmrl_core.data.source import Source
from mmrl_core.renders import objects as renders
from mmrl_core.renders.objects import FINE, Object

KEY = "objects"
TEMPLATES = ["a photo of a {}.", "a drawing of a {}."]
PATTERNS, COLOURS = ("striped", "checkered"), ("red", "orange", "yellow")
SHAPES = ("circle", "square", "triangle", "star")
COUNTS = {"train": 40, "val": 20, "test": 60}  # a class
LIGHT = (0.95, 0.75, 0.55)  # share of red, green and blue that the scene's lamp gives
# Identity of the pictures: write any other text here when one of them would be drawn differently. This one is a digest
# of the code that drew them before the identity was written down, so that data prepared then stays up to date.
PICTURES = "2f70ff8dbd12b582536543268ceb22793ea3a8aea04dd77179e4492b0840428e"


def _classes() -> list[Object]:
    """Base classes, then novel ones: colours and shapes meet once in each half, with another pattern."""
    cells = list(product(enumerate(PATTERNS), enumerate(COLOURS), enumerate(SHAPES)))
    ordered = sorted(cells, key=lambda cell: sum(index for index, _ in cell) % 2)
    return [Object(*(word for _, word in cell)) for cell in ordered]


CLASSES = _classes()


def open_source(key: str = KEY) -> Source:
    """The dataset; an image is a function of its path and is drawn when it is read."""
    names = [shown.name for shown in CLASSES]
    draw = drawn.reader(KEY, lambda rng, item: scene(rng, CLASSES[item.label]))
    return Source(KEY, TEMPLATES, names, *drawn.splits(names, COUNTS), reader=draw)


def fingerprint(key: str = KEY) -> dict[str, str]:
    """What the pictures depend on: they are drawn alike wherever `PICTURES` is the same."""
    return {"dataset": KEY, "digest": PICTURES}


def scene(rng: np.random.Generator, shown: Object) -> np.ndarray:
    """The object on a mottled ground in warm light, blurred and noisy: uint8 (32, 32, 3)."""
    colours, mask = renders.paint(rng, shown)
    ground = rng.uniform(0.2, 0.8) + _mottle(rng)
    shade = 1 + 0.4 * _mottle(rng).mean(-1, keepdims=True)
    picture = (mask * colours + (1 - mask) * ground) * shade * LIGHT
    blurred = gaussian_filter(picture, (*[rng.uniform(0.3, 0.8)] * 2, 0))
    return renders.shrink(blurred + rng.normal(0, 0.05, blurred.shape))


def _mottle(rng: np.random.Generator, patches: int = 8) -> np.ndarray:
    """Smooth coloured dirt (FINE, FINE, 3), zero on average."""
    return zoom(rng.normal(0, 0.03, (patches, patches, 3)), (FINE // patches, FINE // patches, 1), order=1)
