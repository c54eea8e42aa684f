#!/usr/bin/env bash
# Chromium 150.0.7871.100 (Debian 12), with images by pillow 13.0.0. Needs `chromium` on the PATH.
#
# Expected: a browser shows an image upright as its EXIF orientation says (CSS `image-orientation: from-image`, the
# initial value, and createImageBitmap's default), of whatever format the file is.
# Seen: JPEG, PNG and AVIF are turned, WebP is not: the same picture with the same EXIF lies on its side. Pillow's
# `ImageOps.exif_transpose` and macOS turn it, so what runs a model in the browser sees another image than what runs it
# on a server. Convert such files, or turn the pixels by an orientation that is read from the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pillow==13.0.0

venv/bin/python - << 'EOF'
import base64
import io
import re
import subprocess

from PIL import Image, ImageOps

ORIENTATION, TURNED = 0x0112, 6
FORMATS = ("JPEG", "PNG", "AVIF", "WEBP")


def picture(file_format: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    file = io.BytesIO()
    Image.new("RGB", (16, 8), "red").save(file, file_format, exif=exif)
    assert ImageOps.exif_transpose(Image.open(file)).size == (8, 16)
    return file.getvalue()


images = "".join(f'<img src="data:image/{name.lower()};base64,{base64.b64encode(picture(name)).decode()}">'
                 for name in FORMATS)
script = "document.title = [...document.images].map(image => image.naturalWidth + 'x' + image.naturalHeight)"
with open("page.html", "w") as page:
    page.write(f'<title></title><body onload="{script}">{images}')
command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir=profile", "--no-first-run",
           "--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"]
document = subprocess.run([*command, "page.html"], check=True, capture_output=True, text=True).stdout
[title] = re.findall("<title>(.*?)</title>", document)
seen = dict(zip(FORMATS, title.split(","), strict=True))
for name, size in seen.items():
    print(f"{name} of 16 x 8 with orientation 6: shown as {size}")
assert seen == {"JPEG": "8x16", "PNG": "8x16", "AVIF": "8x16", "WEBP": "16x8"}
EOF

# Output seen:
#   JPEG of 16 x 8 with orientation 6: shown as 8x16
#   PNG of 16 x 8 with orientation 6: shown as 8x16
#   AVIF of 16 x 8 with orientation 6: shown as 8x16
#   WEBP of 16 x 8 with orientation 6: shown as 16x8
