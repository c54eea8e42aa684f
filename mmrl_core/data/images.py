"""Encoded image bytes to pixels, and nothing else: no torch here, so that preparing data stays light."""

import contextlib
import io
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from mmrl_core.data.foreign import RAW, foreign_content, foreign_name, holds_readable_heif, refusal
from mmrl_core.data.quiet import reading
from mmrl_core.errors import UserError

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that starts a program, as EPS does
JPEG = b"\xff\xd8\xff"  # how one begins
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip  # what turns an image of that EXIF orientation upright
SIDEWAYS = (5, 6, 7, 8)  # orientations whose width is the upright image's height
SIGNED, WHITE_IS_ZERO, APART, HALVED = 2, 0, 2, (2, 2)  # values of a TIFF's tags; the last is a default
GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow's raw modes of a PNG's greys of 2 and 4 bits: from one level to the next
SAVE = "save it with 8 or 16 bits"


def formats(image: bytes) -> tuple[str, ...]:
    """What Pillow may take a file for; HEIF where it begins like one and pillow-heif is installed. It asks each format
    in turn, and of one that begins as a JPEG no other would say yes."""
    if image.startswith(JPEG):
        return ("JPEG",)
    if not holds_readable_heif(image):
        return _FORMATS
    import_module("pillow_heif").register_heif_opener()  # a few assignments; it turns an image upright and says so
    return (*_FORMATS, "HEIF")


def decode(image: bytes, name: str, reduction: int = 1) -> Image.Image:
    """The RGB image behind encoded bytes as a person would see it on white, every pixel decoded.

    A JPEG may be decoded at a half, quarter or eighth of its sides (`reduction` 2, 4, 8), in less time and memory.

    Transparency is laid over white; greys of more than 8 bits are scaled from the whole range that the file states; of
    an animation or several pages the first counts; a photograph is turned upright as its EXIF orientation says. The
    published loader (CoOp's) ignores the orientation and drops the alpha channel: pixels differ from its for images
    that have either.

    Raises UserError naming `name` when the bytes are no whole image, are of a format or a kind of pixels that is not
    read (`_check_pixels`), or hold more pixels than Pillow's `Image.MAX_IMAGE_PIXELS` (a decompression bomb; Pillow
    itself only warns up to twice that limit).
    """
    with _opened(image, name) as opened:
        if reduction > 1:  # any other format has nothing to do with it
            opened.draft(opened.mode, (max(1, opened.width // reduction), max(1, opened.height // reduction)))
        return _upright(opened)


def check(image: bytes, name: str) -> None:
    """Raises UserError where `decode` does, sooner, as no picture is made of the pixels."""
    with _opened(image, name) as opened:
        if opened.format == "JPEG" and opened.mode in ("RGB", "L"):  # once decoded it can be used
            opened.load()
        else:
            _upright(opened)


@contextlib.contextmanager
def _opened(image: bytes, name: str) -> Iterator[Image.Image]:
    if foreign_name(name) == RAW:  # most are built as a TIFF, in which Pillow would find a thumbnail
        raise UserError(refusal(name, RAW))
    try:
        with reading(), Image.open(io.BytesIO(image), formats=formats(image)) as opened:
            _check_pixel_count(opened)
            yield opened
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on damaged bytes
        raise UserError(_problem(image, name, error)) from error


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The same of an image that Pillow has opened or made. Raises UserError naming `name` as `decode` does."""
    try:
        with reading():
            return _upright(image)
    except Exception as error:
        raise UserError(_unreadable(name, error)) from error


def size_of(encoded: bytes) -> tuple[int, int]:
    """Width and height in pixels by the file's header, without a pixel decoded; 0, 0 where `decode` will say what is
    wrong. A decompression bomb has the size that it states, or 0, 0 beyond twice Pillow's limit."""
    try:
        with reading(), Image.open(io.BytesIO(encoded), formats=formats(encoded)) as opened:
            return opened.size
    except Exception:  # whatever Pillow's plugins raise on damaged bytes
        return 0, 0


def is_plain(opened: Image.Image) -> bool:
    """Whether an opened JPEG holds three colours or greys that need no turning, of no more pixels than are read."""
    limit = Image.MAX_IMAGE_PIXELS
    fits = limit is None or opened.width * opened.height <= limit
    return fits and opened.mode in ("RGB", "L") and _orientation(opened) not in TURNS


def upright_size(opened: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once it is turned."""
    width, height = opened.size
    return (height, width) if _orientation(opened) in SIDEWAYS else (width, height)


def _problem(image: bytes, name: str, error: Exception) -> str:
    if kind := foreign_content(image) or foreign_name(name):
        return refusal(name, kind)
    if not isinstance(error, UnidentifiedImageError):
        return _unreadable(name, error)
    if image[:4] in (b"II*\0", b"MM\0*"):
        return f"{name} is a damaged TIFF or one of a kind of pixels that is not read; save it as PNG"
    return f"{name} is not an image of a known format ({', '.join(_FORMATS)}); replace it"


def _unreadable(name: str, error: Exception) -> str:
    return f"cannot read the image {name} ({error or type(error).__name__}); replace it"


def _check_pixel_count(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the limit of {limit}")


def _upright(image: Image.Image) -> Image.Image:
    _check_pixels(image)
    rgb = _on_white(image)
    turn = TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _check_pixels(image: Image.Image) -> None:
    """ValueError for pixels whose black and white the file does not state, and for those that Pillow misreads."""
    _check_range(image)
    if problem := _misread(image):
        raise ValueError(f"{problem}, which Pillow misreads; save it as PNG with 8 bits a channel")


def _check_range(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError(f"its floating-point pixels have no agreed range; {SAVE}")
    if SIGNED in _tiff_tags(image).get(ExifTags.Base.SampleFormat, ()):
        raise ValueError(f"its signed pixels have no agreed black; {SAVE}, unsigned")
    if image.mode == "I" and image.format != "PPM":  # Pillow scales a PPM's greys to 16 bits
        raise ValueError(f"its pixels of 32 bits have no agreed range; {SAVE}")


def _misread(image: Image.Image) -> str:
    """What of an image that is not yet decoded Pillow gets wrong without a word; empty where there is nothing."""
    tags, (codec, raw_mode) = _tiff_tags(image), _storage(image)
    if tags.get(ExifTags.Base.PlanarConfiguration) == APART and image.mode != "L":
        deep = codec == "raw" and max(tags.get(ExifTags.Base.BitsPerSample, (8,))) > 8
        if deep or image.mode in ("LA", "La", "PA", "LAB"):
            return "its channels lie apart"
    if codec == "raw" and image.mode == "YCbCr" and tags.get(ExifTags.Base.YCbCrSubSampling, HALVED) != (1, 1):
        return "its colours have a lower resolution than its pixels"
    return "its transparent colour has 16 bits" if raw_mode == "RGB;16B" and "transparency" in image.info else ""


def _tiff_tags(image: Image.Image) -> dict[int, Any]:
    return getattr(image, "tag_v2", {})


def _storage(image: Image.Image) -> tuple[str, str]:
    """The codec and how pixels are stored, in Pillow's words, of an image that is not yet decoded; else empty."""
    for tile in getattr(image, "tile", []):
        return tile.codec_name, tile.args if isinstance(tile.args, str) else str(next(iter(tile.args or [""])))
    return "", ""


def _on_white(image: Image.Image) -> Image.Image:
    step = GREY_STEPS.get(_storage(image)[1]) if image.format == "PNG" else None
    image.load()
    if image.mode.startswith("I"):  # I, I;16, I;16B: Pillow's own conversion would clip at 255
        image = _eight_bits(image)
    elif step and "transparency" in image.info:  # Pillow scales the pixels and not the level that is transparent
        image = image.copy()
        image.info["transparency"] *= step
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, from the whole range of that many bits; a level that is transparent becomes white."""
    import numpy as np

    tags, values = _tiff_tags(image), np.asarray(image).astype(np.uint32)
    white = 2 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _orientation(loaded: Image.Image) -> int:
    """The EXIF orientation that is still to be applied: loading a TIFF applies its own and forgets it."""
    try:
        return loaded.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whole pixels behind damaged metadata are still a whole image
        return 1
