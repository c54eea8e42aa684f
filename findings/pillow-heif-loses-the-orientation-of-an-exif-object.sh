#!/usr/bin/env bash
# pillow-heif 1.8.1 with pillow 13.0.0, Python 3.11.
#
# Expected: `image.save(path, "HEIF", exif=exif)` with a PIL.Image.Exif keeps the orientation that it holds, as saving a
# JPEG, PNG, WebP, TIFF or AVIF with the same argument does.
# Seen: the file is written without a word and without the rotation: the image comes back lying on its side, with an
# orientation of 1. What looks for the orientation takes `exif` for bytes, fails on an object, and the failure is caught
# and dropped (`except Exception` in pillow_heif/misc.py). With `exif=exif.tobytes()` the image comes back upright.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pillow==13.0.0 pillow-heif==1.8.1

venv/bin/python - << 'EOF'
import io

from pillow_heif import register_heif_opener
from PIL import Image, ImageOps

register_heif_opener()
ORIENTATION, TURNED = 0x0112, 6


def upright_size(file_format: str, as_bytes: bool) -> tuple[int, int]:
    exif = Image.Exif()  # a new one each time: the AVIF plugin takes the orientation out of what it is given
    exif[ORIENTATION] = TURNED
    file = io.BytesIO()
    Image.new("RGB", (160, 80), "red").save(file, file_format, exif=exif.tobytes() if as_bytes else exif)
    return ImageOps.exif_transpose(Image.open(file)).size


seen = {}
for file_format in ("JPEG", "AVIF", "HEIF"):
    seen[file_format] = upright_size(file_format, False), upright_size(file_format, True)
    print(f"{file_format}: 160 x 80 turned is {seen[file_format][0]} by an Exif, {seen[file_format][1]} by its bytes")
assert seen["JPEG"] == seen["AVIF"] == ((80, 160), (80, 160))
assert seen["HEIF"] == ((160, 80), (80, 160))
EOF

# Output seen:
#   JPEG: 160 x 80 turned is (80, 160) by an Exif, (80, 160) by its bytes
#   AVIF: 160 x 80 turned is (80, 160) by an Exif, (80, 160) by its bytes
#   HEIF: 160 x 80 turned is (160, 80) by an Exif, (80, 160) by its bytes
