"""A program that knows of an image what model.json says and no more: Pillow and NumPy, nothing of this project."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ROUNDINGS = {"floor": int, "half to even": round}


def follow(card: dict[str, Any], image: bytes) -> np.ndarray:
    """The file's input, (1, 3, S, S) float32. Raises KeyError on a statement that it does not know."""
    square = {"shortest": shortest, "squash": squash, "longest": longest}[card["resizing"]["mode"]]
    pixels = np.asarray(square(card, decoded(card["decoding"], image)), np.float32) / 255
    normalised = (pixels - np.float32(card["mean"])) / np.float32(card["std"])
    return normalised.transpose(2, 0, 1)[None]


def decoded(says: dict[str, Any], image: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(image))
    opened.seek(says["frame"])
    opened = {"applied": ImageOps.exif_transpose}[says["exif_orientation"]](opened)
    if opened.mode.startswith("I;16"):
        opened = eight_bits(says, opened, Image.open(io.BytesIO(image)))
    rgba = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*says["background"], 255)), rgba).convert("RGB")


def eight_bits(says: dict[str, Any], opened: Image.Image, file: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, with its transparent level."""
    values, tags = np.asarray(opened).astype(np.int64), getattr(file, "tag_v2", {})
    levels = eval(says["deep_grey"], {"value": values, "bits": tags.get(258, (16,))[0]})
    grey = {"nearest": np.rint}[says["deep_grey_rounding"]](levels).astype(np.uint8)
    if tags.get(262) == 0:
        grey = {"inverted": 255 - grey}[says["white_is_zero"]]
    alpha = np.where(values == file.info.get("transparency", -1), 0, 255).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])


def resized(card: dict[str, Any], image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling[card["resizing"]["interpolation"].upper()])


def shortest(card: dict[str, Any], image: Image.Image) -> Image.Image:
    size, says = card["image_size"], card["resizing"]
    long_side, offset = ROUNDINGS[says["long_side_rounding"]], ROUNDINGS[says["crop_offset_rounding"]]
    image = resized(card, image, tuple(long_side(size * side / min(image.size)) for side in image.size))
    left, top = offset((image.width - size) / 2), offset((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def squash(card: dict[str, Any], image: Image.Image) -> Image.Image:
    return resized(card, image, (card["image_size"], card["image_size"]))


def longest(card: dict[str, Any], image: Image.Image) -> Image.Image:
    size, says = card["image_size"], card["resizing"]
    short_side, offset = ROUNDINGS[says["short_side_rounding"]], ROUNDINGS[says["pad_offset_rounding"]]
    sides = (size if side == max(image.size) else short_side(size * side / max(image.size)) for side in image.size)
    image = resized(card, image, tuple(max(1, side) for side in sides))
    square = Image.new("RGB", (size, size), tuple(says["fill"]))
    square.paste(image, (offset((size - image.width) / 2), offset((size - image.height) / 2)))
    return square
