"""Encoded images of every kind that people have, most made by Pillow."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps


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


def tiff(strips: list[bytes], width: int, *, bits=(8,), photometric=1, order="<", packed=False, **tags) -> bytes:
    """One row of pixels in a TIFF, as the tags say: of every make that Pillow cannot write itself.

    `order` is "<" or ">"; `packed` compresses (deflate). Further tags go by their number, as `t338=(2,)`; a strip holds
    all channels, or one each with `t284=(2,)`.
    """
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    offsets = [8 + sum(len(before) + len(before) % 2 for before in strips[:index]) for index in range(len(strips))]
    longs = {256: [width], 257: [1], 273: offsets, 278: [1], 279: [len(strip) for strip in strips]}
    shorts = {258: bits, 259: [8 if packed else 1], 262: [photometric], 277: [len(bits)],
              **{int(name[1:]): value for name, value in tags.items()}}  # fmt: skip
    entries = {tag: (4, "I", values) for tag, values in longs.items()}
    entries |= {tag: (3, "H", values) for tag, values in shorts.items()}
    body = b"".join(strip + bytes(len(strip) % 2) for strip in strips)
    directory, beyond, after = b"", b"", 8 + len(body) + 2 + 12 * len(entries) + 4
    for tag, (kind, letter, values) in sorted(entries.items()):
        value = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(value) > 4:
            value, beyond = struct.pack(f"{order}I", after + len(beyond)), beyond + value
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body)) + body
    return head + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + beyond


def raw_png(row: bytes, width: int, bits: int, colour_type: int, clear: bytes) -> bytes:
    """One row of pixels in a PNG with a tRNS chunk, in every colour type and depth of the format."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", clear), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def _sixteen_bits(picture: Image.Image) -> bytes:
    return encoded(Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), "TIFF")


def _clear_palette(picture: Image.Image) -> bytes:
    return encoded(picture.quantize(16), "PNG", transparency=bytes([0, 128]))


def _animated(picture: Image.Image) -> bytes:
    return encoded(picture, "GIF", save_all=True, append_images=[Image.new("RGB", picture.size, "blue")])


def _turned(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


ODD = {  # file name -> a picture as that file
    "sixteen_bits.tif": _sixteen_bits,
    "ink.jpg": lambda picture: encoded(picture.convert("CMYK"), "JPEG", quality=95),
    "clear_palette.png": _clear_palette,
    "animated.gif": _animated,
    "turned.jpg": _turned,
}


def on_white(image: bytes) -> Image.Image:
    """What Pillow itself makes of one of ODD's files, upright and on white."""
    opened = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
    if opened.mode == "I;16":
        opened = opened.convert("I").point(lambda level: level * (1 / 257) + 0.5).convert("L")
    rgba = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
