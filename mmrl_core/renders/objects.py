"""Procedural pictures of coloured, patterned shapes, and the captions that are true of them."""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32  # side of a render, pixels
FINE = 64  # side of the canvas on which an object is put together
# Hue in degrees, saturation and value: centre and half-width of the range that bears each name.
COLOURS = {
    "red": ((0, 8), (0.88, 0.12), (0.82, 0.15)),
    "orange": ((28, 7), (0.92, 0.08), (0.92, 0.08)),
    "yellow": ((54, 7), (0.88, 0.12), (0.92, 0.08)),
    "green": ((120, 22), (0.8, 0.2), (0.65, 0.2)),
    "cyan": ((182, 10), (0.8, 0.2), (0.85, 0.15)),
    "blue": ((226, 14), (0.85, 0.15), (0.75, 0.2)),
    "purple": ((276, 12), (0.75, 0.2), (0.65, 0.2)),
    "pink": ((328, 12), (0.5, 0.15), (0.92, 0.08)),
    "brown": ((24, 8), (0.7, 0.15), (0.4, 0.1)),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "a {}", "{}")


class Object(NamedTuple):
    """What a picture shows; its name is the three words in this order."""

    pattern: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return " ".join(self)


def captions(shown: Object) -> tuple[str, ...]:
    """Captions that are true of a picture: its whole name in every template, and parts of it."""
    pattern, colour, shape = shown
    parts = (shape, f"{colour} {shape}", f"{pattern} {shape}", f"{pattern} {colour} object")
    whole = tuple(template.format(shown.name) for template in TEMPLATES)
    return whole + tuple(TEMPLATES[0].format(part) for part in parts)


def paint(rng: np.random.Generator, shown: Object, turn: float = 25.0) -> tuple[np.ndarray, np.ndarray]:
    """An object without its surroundings: colours (FINE, FINE, 3) and how far it covers each pixel (FINE, FINE, 1).

    Both lie in [0, 1]. `turn` is the standard deviation of the object's rotation in degrees.
    """
    angle, grow = np.deg2rad(rng.normal(0, turn)), rng.uniform(0.6, 0.95, 2)
    place = rng.uniform(-1, 1, 2) * (1 - grow.max())
    mask = _silhouette(SHAPES[shown.shape], angle, grow, place)
    ink = _pattern(rng, shown.pattern)[..., None]
    second = np.full(3, rng.uniform(0.85, 1.0) if rng.random() < 0.5 else rng.uniform(0.0, 0.15))
    return ink * sample_colour(rng, shown.colour) + (1 - ink) * second, mask[..., None]


def sample_colour(rng: np.random.Generator, name: str) -> np.ndarray:
    """RGB (3,) in [0, 1] that bears the name."""
    hue, saturation, value = (centre + width * rng.uniform(-1, 1) for centre, width in COLOURS[name])
    sector = (np.array([5, 3, 1]) + hue / 60) % 6
    return value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)


def shrink(picture: np.ndarray) -> np.ndarray:
    """(FINE, FINE, 3) in [0, 1] -> uint8 (SIZE, SIZE, 3), by averaging."""
    step = FINE // SIZE
    small = picture.reshape(SIZE, step, SIZE, step, 3).mean((1, 3))
    return np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)


def photograph(rng: np.random.Generator, shown: Object) -> np.ndarray:
    """The object on an even, dull ground, with a little noise: uint8 (SIZE, SIZE, 3)."""
    colours, mask = paint(rng, shown)
    ground = rng.uniform(0.05, 0.95) + rng.uniform(-0.06, 0.06, 3)
    picture = mask * colours + (1 - mask) * ground
    return shrink(picture + rng.normal(0, rng.uniform(0, 0.06), picture.shape))


def _silhouette(outline: Sequence, angle: float, grow: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Coverage (FINE, FINE) of polygons in [-1, 1]: the first is filled, each further one cut out."""
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * grow
    canvas = Image.new("L", (2 * FINE, 2 * FINE))
    for number, points in enumerate(outline):
        corners = (points @ turned.T + place + 1) * FINE
        ImageDraw.Draw(canvas).polygon(corners.ravel().tolist(), fill=0 if number else 255)
    return np.asarray(canvas.reduce(2), dtype=np.float32) / 255


def _pattern(rng: np.random.Generator, name: str) -> np.ndarray:
    """Share of the object's own colour (FINE, FINE), the rest being the second colour."""
    if name == "plain":
        return np.ones((FINE, FINE))
    angle, period = rng.uniform(0, np.pi), rng.uniform(9, 15)
    along = _coordinates() @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    u, v = np.moveaxis(np.cos(2 * np.pi * along / period + rng.uniform(0, 2 * np.pi, 2)), -1, 0)
    wave = {"striped": u, "dotted": 0.55 - u - v, "checkered": 2 * u * v}[name]
    return np.clip(0.5 + 1.5 * wave, 0, 1)


@cache
def _coordinates() -> np.ndarray:
    return np.moveaxis(np.indices((FINE, FINE), dtype=float), 0, -1)


def _around(radii: Sequence[float], start: float = -90.0) -> np.ndarray:
    """Points (n, 2) at even angles and these radii, the first at `start` degrees; y points down."""
    angles = np.deg2rad(start + np.arange(len(radii)) * 360 / len(radii))
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.asarray(radii)[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], 1) / 15


def _cross(arm: float = 0.34) -> np.ndarray:
    quarter = np.array([[arm, -1], [arm, -arm], [1, -arm]])
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
    return np.concatenate([quarter @ turn.T for turn in turns])


def _crescent() -> np.ndarray:
    outer, inner = np.linspace(0.25, 1.75, 32) * np.pi, np.linspace(1.72, 0.28, 32) * np.pi
    arc = np.stack([np.cos(outer), np.sin(outer)], 1)
    return np.concatenate([arc, np.stack([0.78 * np.cos(inner) + 0.3, 0.78 * np.sin(inner)], 1)])


DISC = _around([1.0] * 48)
SHAPES = {
    "circle": (DISC,),
    "square": (_around([1.2] * 4, -45),),
    "triangle": (_around([1.1] * 3),),
    "star": (_around([1.1, 0.45] * 5),),
    "heart": (_heart(),),
    "cross": (_cross(),),
    "ring": (DISC, 0.55 * DISC),
    "crescent": (_crescent(),),
}
OBJECTS = tuple(Object(*words) for words in product(PATTERNS, COLOURS, SHAPES))
