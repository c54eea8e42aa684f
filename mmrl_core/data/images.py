"""Encoded image bytes to pixels, and nothing else: no torch here, so that preparing data stays light."""

import io

from PIL import Image, UnidentifiedImageError

from mmrl_core.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no format that starts a program, as EPS does


def decode(image: bytes, name: str) -> Image.Image:
    """The RGB image behind encoded bytes, every pixel decoded.

    Raises UserError naming `name` when the bytes are no whole image, or hold more pixels than Pillow's
    `Image.MAX_IMAGE_PIXELS` (a decompression bomb; Pillow itself only warns up to twice that limit).
    """
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            _check_pixel_count(opened)
            return opened.convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"{name} is not an image of a known format ({', '.join(FORMATS)}); replace it") from None
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on damaged bytes
        raise UserError(f"cannot read the image {name} ({error or type(error).__name__}); replace it") from error


def _check_pixel_count(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the limit of {limit}")
