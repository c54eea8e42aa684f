"""Encoded images of every kind that people have, made by Pillow."""

import io

from PIL import Image


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def png(number: int) -> bytes:
    """A small picture; another number, another picture."""
    return encoded(Image.new("RGB", (6, 5), (number % 256, number // 256, 7)), "PNG")


def two_frames(file_format: str, first: str = "red", second: str = "blue", **options) -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in (first, second)]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)


def halves() -> Image.Image:
    """16 x 8, red on the left, blue on the right, green below both: every turn shows."""
    image = Image.new("RGB", (16, 8), "red")
    image.paste("blue", (8, 0, 16, 8))
    image.paste("green", (0, 4, 16, 8))
    return image


def oriented(file_format: str, orientation) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(halves(), file_format, exif=exif)
