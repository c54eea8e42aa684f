"""Procedural pictures of digits and letters, printed and handwritten, and the captions that are true of them."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import make_interp_spline
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

SIZE = 32  # side of a render, pixels
COARSE = 8  # side of the grid that coarse renders pass through
FIELD, GLYPH = 64, 40  # side of a distance field and of the glyph in its middle, field pixels
DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The text fonts among those that matplotlib ships; the others hold symbols or extensions.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
# Ways to write each digit by hand: strokes of control points `xy` on a grid, 0 to 9 rightwards and downwards.
HANDS = {
    "0": ("50 23 16 38 59 77 84 72 50", "60 31 14 27 49 78 86 83 60 41"),
    "1": ("50 59", "23 50, 50 59", "14 50, 50 59", "23 50, 50 59, 29 89"),
    "2": ("12 30 60 82 75 47 19, 19 89", "12 30 60 82 65 38 18 27 48 99", "21 50 72 64 29, 29 79"),
    "3": ("11 40 71 73 44, 44 75 87 59 18", "10 80, 80 44, 44 75 87 59 18", "11 40 71 73 34 74 87 59 18"),
    "4": ("30 15, 15 95, 62 69", "60 16, 16 96, 60 69", "10 14 36 65, 80 76 69", "50 15, 15 85, 53 59"),
    "5": ("80 20, 20 14, 14 43 74 86 68 39 18", "70 30, 30 24, 24 54 75 77 59 29", "20 24, 24 54 76 58 28, 20 80"),
    "6": ("60 33 16 28 59 88 86 64 35 17", "50 24 17 39 69 77 65 45 27", "40 24 27 49 78 76 55 26"),
    "7": ("10 80, 80 54 39", "10 80, 80 54 39, 25 85", "12 10, 10 80, 80 49", "10 70, 70 59, 35 85"),
    "8": ("50 21 23 44 76 78 59 28 26 54 73 71 50", "50 21 23 44 73 71 50, 44 26 28 59 78 76 44"),
    "9": ("72 50 21 13 34 64 72, 72 75 59", "72 50 21 13 34 64 72, 72 69", "72 50 21 13 34 64 72, 72 76 69 39 18"),
}
WORD_TEMPLATES = (
    "a photo of the digit {}.",
    "a photo of a {}.",
    "a photo of the number {}.",
    "a handwritten {}.",
    "the number {}",
    "{}",
)
CHARACTER_TEMPLATES = ("a photo of the digit {}.", "the digit {}", "a handwritten digit {}.")
LETTER_TEMPLATES = ("a photo of the letter {}.", "a handwritten letter {}.")
CASE_TEMPLATES = ("a photo of the {case} letter {letter}.", "the {case} letter {letter}", "{case} {letter}")


def captions(character: str) -> tuple[str, ...]:
    """Captions that are true of a digit or a letter. CLIP ignores case, so some are shared by `B` and `b`."""
    if character in DIGITS:
        words = (template.format(DIGIT_WORDS[int(character)]) for template in WORD_TEMPLATES)
        return (*words, *(template.format(character) for template in CHARACTER_TEMPLATES))
    case, letter = "uppercase" if character.isupper() else "lowercase", character.lower()
    shared = (template.format(letter) for template in LETTER_TEMPLATES)
    return (*shared, *(template.format(case=case, letter=letter) for template in CASE_TEMPLATES))


def photograph(rng: np.random.Generator, character: str) -> np.ndarray:
    """A picture of a digit or a letter: grey, uint8 (SIZE, SIZE)."""
    by_hand = character in DIGITS and rng.random() < 0.6
    field = _written_field(rng, character) if by_hand else _printed_field(str(rng.choice(FONTS)), character)
    ink = _draw(rng, field)
    return _coarsen(rng, ink) if rng.random() < 0.6 else _soil(rng, ink)


def _written_field(rng: np.random.Generator, digit: str) -> np.ndarray:
    """Like `_printed_field`, for a digit written by an unsteady hand with a pen one field pixel wide."""
    canvas = Image.new("L", (FIELD, FIELD))
    for stroke in str(rng.choice(HANDS[digit])).split(", "):
        points = np.array([[int(digit) for digit in point] for point in stroke.split(" ")], dtype=float)
        points += rng.normal(0, 0.35, points.shape)
        places = np.linspace(0, len(points) - 1, 8 * len(points))
        curve = make_interp_spline(range(len(points)), points, k=min(3, len(points) - 1))(places)
        ImageDraw.Draw(canvas).line([tuple(point) for point in curve * GLYPH / 9 + (FIELD - GLYPH) / 2], fill=255)
    return (1 - distance_transform_edt(np.asarray(canvas) == 0)).astype(np.float32)


@cache
def _printed_field(font: str, character: str) -> np.ndarray:
    """Signed distance to the glyph's outline (FIELD, FIELD), positive inside: one field serves every stroke width."""
    import matplotlib  # here: only its font folder is wanted, and importing it takes a while

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    sheet = Image.new("L", (320, 320))
    ImageDraw.Draw(sheet).text((80, 40), character, fill=255, font=ImageFont.truetype(str(path), 160))
    glyph = sheet.crop(sheet.getbbox())
    scale = GLYPH / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * scale)) for side in glyph.size], Image.Resampling.BOX)
    canvas = Image.new("L", (FIELD, FIELD))
    canvas.paste(glyph, ((FIELD - glyph.width) // 2, (FIELD - glyph.height) // 2))
    inside = np.asarray(canvas) > 127
    return (distance_transform_edt(inside) - distance_transform_edt(~inside)).astype(np.float32)


def _draw(rng: np.random.Generator, field: np.ndarray) -> np.ndarray:
    """Ink (SIZE, SIZE) in [0, 1]: the glyph bent, turned, stretched, and written with a pen of random width."""
    distance = map_coordinates(field, _warp(rng), order=1, mode="nearest")
    half_width = field.max()
    thicken = max(rng.uniform(1.5, 5.0) - half_width, -0.3 * half_width)
    softness = rng.uniform(1.5, 3.0)
    return np.clip((distance + thicken) / softness + 0.5, 0, 1)


def _warp(rng: np.random.Generator) -> np.ndarray:
    """Where in the field each pixel of the render looks, (2, SIZE, SIZE): inverse affine map plus elastic bending."""
    turn, shear = np.deg2rad(rng.normal(0, 11)), rng.normal(0, 0.22)
    height, width = rng.uniform(0.65, 1.0), rng.uniform(0.55, 1.1)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    forward = rotation @ np.array([[height, 0], [shear * height, width]]) * SIZE / GLYPH
    pixels = np.indices((SIZE, SIZE)).reshape(2, -1) - (SIZE - 1) / 2 - rng.normal(0, 1.2, (2, 1))
    centred = (np.linalg.inv(forward) @ pixels).reshape(2, SIZE, SIZE)
    knots = rng.normal(0, rng.uniform(0, 5.0), (2, *[_smooth_basis().shape[1]] * 2))
    return centred + (FIELD - 1) / 2 + _smooth_basis() @ knots @ _smooth_basis().T


@cache
def _smooth_basis(knots: int = 5) -> np.ndarray:
    """Gaussian weights (SIZE, knots) that spread a few random displacements smoothly over the pixels."""
    positions, centres = np.arange(SIZE)[:, None], np.linspace(0, SIZE - 1, knots)[None]
    weights = np.exp(-0.5 * ((positions - centres) / (0.6 * SIZE / (knots - 1))) ** 2)
    return weights / weights.sum(1, keepdims=True)


def _coarsen(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    """The ink's bounding box on an 8x8 grid of 17 greys, enlarged bicubically: how small scans of digits look."""
    page = Image.fromarray((ink * 255).astype(np.uint8))
    box = page.point(lambda value: 255 * (value > 60)).getbbox() or (0, 0, SIZE, SIZE)
    aspect = (box[2] - box[0]) / (box[3] - box[1])
    width = int(np.clip(round(COARSE * aspect * rng.uniform(0.75, 1.15)), 2, COARSE - 1))
    small = page.resize((width, COARSE), Image.Resampling.BOX, box=box)
    grid = np.zeros((COARSE, COARSE))
    left = int(np.clip((COARSE - width + rng.integers(0, 2)) // 2, 0, COARSE - width))
    shade = np.asarray(small) / max(1, np.asarray(small).max()) * rng.uniform(0.95, 1.4)
    grid[:, left : left + width] = np.round(np.clip(shade, 0, 1) * 16)
    grey = Image.fromarray((grid / 16 * 255).astype(np.uint8))
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _soil(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    """Blur, grey levels of ink and paper (a quarter dark on light) and noise."""
    ink = gaussian_filter(ink, rng.uniform(0, 1.2))
    paper, pen = rng.uniform(0, 0.3), rng.uniform(0.6, 1.0)
    if rng.random() < 0.25:
        paper, pen = pen, paper
    picture = paper + (pen - paper) * ink + rng.normal(0, rng.uniform(0, 0.1), ink.shape)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)
