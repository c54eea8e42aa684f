#!/usr/bin/env bash
# pillow 13.0.0, Python 3.11; pypng 0.20220715.0 as another reader.
#
# Expected: a grey PNG whose tRNS chunk names one level as transparent has alpha 0 at the pixels of that level after
# `convert("RGBA")`, whatever the bits of a sample.
# Seen: with 2 and 4 bits no pixel is transparent. Pillow scales the levels to 8 bits when it reads them (by 85, by 17),
# but not info["transparency"], which then names a level that no pixel has: all but level 0 are lost. 1 and 8 bits are
# right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pillow==13.0.0 pypng==0.20220715.0 "numpy<3"

venv/bin/python -W error - << 'EOF'
import io

import numpy as np
import png
from PIL import Image

right = {}
for bits in (1, 2, 4, 8):
    levels = [level % 2**bits for level in range(8)]
    file = io.BytesIO()
    png.Writer(8, 1, greyscale=True, bitdepth=bits, transparent=1).write(file, [levels])
    file.seek(0)
    _, _, rows, _ = png.Reader(file).asRGBA8()
    other = list(rows)[0][3::4]
    assert list(other) == [0 if level == 1 else 255 for level in levels]
    file.seek(0)
    image = Image.open(file)
    alpha = np.asarray(image.convert("RGBA"))[0, :, 3]
    right[bits] = alpha.tolist() == list(other)
    print(
        f"{bits} bits: mode {image.mode}, level 1 is read as {np.asarray(image.convert('L'))[0, 1]}, info says",
        f"{image.info['transparency']}, transparent pixels: {(alpha == 0).sum()} of {levels.count(1)}",
    )
assert right == {1: True, 2: False, 4: False, 8: True}
EOF

# Output seen:
#   1 bits: mode 1, level 1 is read as 255, info says 255, transparent pixels: 4 of 4
#   2 bits: mode L, level 1 is read as 85, info says 1, transparent pixels: 0 of 2
#   4 bits: mode L, level 1 is read as 17, info says 1, transparent pixels: 0 of 1
#   8 bits: mode L, level 1 is read as 1, info says 1, transparent pixels: 1 of 1
