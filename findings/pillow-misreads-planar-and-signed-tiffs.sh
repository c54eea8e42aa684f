#!/usr/bin/env bash
# pillow 13.0.0, Python 3.11; tifffile 2026.3.3 as another reader.
#
# Expected: a picture of one row in a TIFF comes out of Pillow as it was written, whatever the order of its bytes and
# channels, deflated or not. Pillow's documentation says that it reads "pixel and plane interleaved" images.
# Seen: some come out wrong, without an error or a warning.
# - 16-bit RGB in planes, not compressed: each plane is read as one of 8 bits, so that the low and the high byte of a
#   sample become two pixels, and half of the picture is shown, twice as wide. Deflated, it is right.
# - grey and alpha in planes, deflated: alpha is 0 everywhere.
# - signed 16-bit levels in big-endian order, deflated: the bytes of each are swapped. Not compressed, they are right.
#
# The same samples pixel by pixel, or in little-endian order, are right. tifffile reads all of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 "numpy<3"

venv/bin/python -W error - << 'EOF'
import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

WIDTH, PLANES, PIXELS, UNSIGNED, SIGNED, ALPHA, RGB, GREY = 4, 2, 1, 1, 2, 2, 2, 1


def tiff(samples: np.ndarray, order: str, deflated: bool, layout: int, photometric: int) -> bytes:
    """A picture of one row, samples[pixel, channel]: a strip for all channels, or one for each."""
    kind = samples.dtype.newbyteorder(order)
    strips = [channel.astype(kind).tobytes() for channel in (samples.T if layout == PLANES else [samples])]
    strips = [zlib.compress(strip) if deflated else strip for strip in strips]
    strips = [strip + bytes(len(strip) % 2) for strip in strips]
    channels, bits = samples.shape[1], 8 * samples.itemsize
    starts = np.cumsum([8] + [len(strip) for strip in strips]).tolist()
    tags = {
        256: ("I", [WIDTH]),
        257: ("I", [1]),
        258: ("H", [bits] * channels),
        259: ("H", [8 if deflated else 1]),
        262: ("H", [photometric]),
        273: ("I", starts[:-1]),
        277: ("H", [channels]),
        278: ("I", [1]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [layout]),
        339: ("H", [SIGNED if samples.dtype.kind == "i" else UNSIGNED] * channels),
    }
    if channels == 2:
        tags[338] = ("H", [ALPHA])
    directory, values = b"", b""
    free = starts[-1] + 2 + 12 * len(tags) + 4
    for tag, (letter, numbers) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(value) > 4:
            value, values = struct.pack(order + "I", free + len(values)), values + value
        directory += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[letter], len(numbers)) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", starts[-1])
    return head + b"".join(strips) + struct.pack(order + "H", len(tags)) + directory + bytes(4) + values


colours = np.array([[0x1234, 0x2345, 0x3456]] * WIDTH, np.uint16)
clear = np.array([[10, 200], [20, 210], [30, 220], [40, 230]], np.uint8)
depths = np.array([[-1000], [-1], [1], [1000]], np.int16)
wrong = []
for name, samples, order, deflated, layout, photometric in (
    ("16-bit RGB, pixel by pixel", colours, "<", False, PIXELS, RGB),
    ("16-bit RGB, planes", colours, "<", False, PLANES, RGB),
    ("16-bit RGB, planes, deflated", colours, "<", True, PLANES, RGB),
    ("grey and alpha, pixel by pixel, deflated", clear, "<", True, PIXELS, GREY),
    ("grey and alpha, planes, deflated", clear, "<", True, PLANES, GREY),
    ("signed, little-endian, deflated", depths, "<", True, PIXELS, GREY),
    ("signed, big-endian", depths, ">", False, PIXELS, GREY),
    ("signed, big-endian, deflated", depths, ">", True, PIXELS, GREY),
):
    file = tiff(samples, order, deflated, layout, photometric)
    other = tifffile.imread(io.BytesIO(file)).squeeze()
    assert np.array_equal(other.T if layout == PLANES else other, samples.squeeze()), name
    seen = np.asarray(Image.open(io.BytesIO(file)))[0]
    # Pillow has no RGB of 16 bits, and keeps the high bytes.
    right = np.array_equal(seen, (samples >> 8 if samples is colours else samples).squeeze())
    print(f"{name}: {'right' if right else f'wrong, {seen.tolist()}'}")
    wrong += [] if right else [name]
assert wrong == ["16-bit RGB, planes", "grey and alpha, planes, deflated", "signed, big-endian, deflated"]
EOF

# Output seen:
#   16-bit RGB, pixel by pixel: right
#   16-bit RGB, planes: wrong, [[52, 69, 86], [18, 35, 52], [52, 69, 86], [18, 35, 52]]
#   16-bit RGB, planes, deflated: right
#   grey and alpha, pixel by pixel, deflated: right
#   grey and alpha, planes, deflated: wrong, [[10, 0], [20, 0], [30, 0], [40, 0]]
#   signed, little-endian, deflated: right
#   signed, big-endian: right
#   signed, big-endian, deflated: wrong, [6396, -1, 256, -6141]
