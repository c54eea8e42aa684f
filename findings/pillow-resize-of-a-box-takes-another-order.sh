#!/usr/bin/env bash
# pillow 13.0.0, Python 3.11.
#
# Expected: `image.resize(size, filter, box)` gives the pixels that resizing the whole image by the same factor and
# cropping it gives: past the edge of the box the filter sees the rest of the image, so that tiles fit each other.
# Seen: for the upper quarter of an image it does not, by 21 of 255 levels in black and white noise made twice as large
# (bicubic). Pillow resizes in one direction and then in the other, with levels rounded and cut off at 0 and 255 between
# the two, and it chooses which comes first by what is resized: here the whole goes horizontally first, the quarter
# vertically. A quarter on the left goes like the whole, and has the same bits.
#
# Two calls keep the order, each of which changes one side only: `resize((width, image.height), filter, (left, 0, right,
# image.height))` and `resize((width, height), filter, (0, upper, width, lower))`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pillow==13.0.0 "numpy<3"

venv/bin/python - << 'EOF'
import numpy as np
from PIL import Image

SIDE, TIMES, FILTER = 64, 2, Image.Resampling.BICUBIC
noise = np.random.default_rng(0).random((SIDE, SIDE)) < 0.5
image = Image.fromarray(np.where(noise, 255, 0).astype(np.uint8))


def horizontally_first(box: tuple[int, int, int, int]) -> Image.Image:
    left, upper, right, lower = box
    width, height = TIMES * (right - left), TIMES * (lower - upper)
    wide = image.resize((width, SIDE), FILTER, (left, 0, right, SIDE))
    return wide.resize((width, height), FILTER, (0, upper, width, lower))


def vertically_first(box: tuple[int, int, int, int]) -> Image.Image:
    left, upper, right, lower = box
    width, height = TIMES * (right - left), TIMES * (lower - upper)
    tall = image.resize((SIDE, height), FILTER, (0, upper, SIDE, lower))
    return tall.resize((width, height), FILTER, (left, 0, right, height))


def differ(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


whole = image.resize((TIMES * SIDE, TIMES * SIDE), FILTER)
seen = {}
for name, box in (
    ("whole", (0, 0, SIDE, SIDE)),
    ("left quarter", (0, 0, SIDE // 4, SIDE)),
    ("upper quarter", (0, 0, SIDE, SIDE // 4)),
):
    left, upper, right, lower = box
    part = image.resize((TIMES * (right - left), TIMES * (lower - upper)), FILTER, box)
    cropped = whole.crop(tuple(TIMES * edge for edge in box))
    assert differ(horizontally_first(box), cropped) == 0
    orders = [order.__name__ for order in (horizontally_first, vertically_first) if differ(order(box), part) == 0]
    seen[name] = differ(part, cropped), *orders
    print(f"{name}: {seen[name][0]} levels from the resized and cropped, {' or '.join(orders)}")
assert seen["whole"] == seen["left quarter"] == (0, "horizontally_first")
assert seen["upper quarter"][0] > 10 and seen["upper quarter"][1:] == ("vertically_first",)
EOF

# Output seen:
#   whole: 0 levels from the resized and cropped, horizontally_first
#   left quarter: 0 levels from the resized and cropped, horizontally_first
#   upper quarter: 21 levels from the resized and cropped, vertically_first
