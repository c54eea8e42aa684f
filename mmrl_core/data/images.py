"""Encoded image bytes to pixels, and nothing else: no torch here, so that preparing data stays light."""

import io

from PIL import ExifTags, Image, UnidentifiedImageError

from mmrl_core.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no format that starts a program, as EPS does
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip  # what turns an image of that EXIF orientation upright


def decode(image: bytes, name: str) -> Image.Image:
    """The RGB image behind encoded bytes as a person would see it on white, every pixel decoded.

    Transparency is laid over white; 16-bit grey is scaled from its whole range; of an animation or several pages the
    first counts; a photograph is turned upright as its EXIF orientation says. The published loader (CoOp's) ignores
    the orientation and drops the alpha channel: pixels differ from its for images that have either.

    Raises UserError naming `name` when the bytes are no whole image, are grey values without an agreed range (floats,
    integers beyond 16 bits), or hold more pixels than Pillow's `Image.MAX_IMAGE_PIXELS` (a decompression bomb; Pillow
    itself only warns up to twice that limit).
    """
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            _check_pixel_count(opened)
            rgb = _to_rgb(opened)
            turn = TURNS.get(_orientation(opened))
            return rgb if turn is None else rgb.transpose(turn)
    except UnidentifiedImageError:
        raise UserError(f"{name} is not an image of a known format ({', '.join(FORMATS)}); replace it") from None
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on damaged bytes
        raise UserError(f"cannot read the image {name} ({error or type(error).__name__}); replace it") from error


def _check_pixel_count(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the limit of {limit}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # I, I;16, I;16B: Pillow's own conversion would clip at 255
        image = _grey_from_16_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _grey_from_16_bits(image: Image.Image) -> Image.Image:
    import numpy as np

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values {values.min()} to {values.max()} beyond 16 bits; save it with 8 or 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _orientation(loaded: Image.Image) -> int:
    """The EXIF orientation that is still to be applied: loading a TIFF applies its own and forgets it."""
    try:
        return loaded.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whole pixels behind damaged metadata are still a whole image
        return 1
