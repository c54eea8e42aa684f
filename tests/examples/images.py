"""Images for the programs of examples/ to label, as files: of several formats, sizes and shapes."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.core.data.odd_images import encoded


def picture(width: int, height: int) -> Image.Image:
    """Gradients and a fine pattern, of which no two sizes give the same."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=-1).astype(np.uint8))


def write_images(folder: Path) -> list[Path]:
    square, clear = picture(256, 256), Image.linear_gradient("L")
    contents = {
        "wide.jpg": encoded(picture(120, 90), "JPEG", quality=75),
        "tall.png": encoded(picture(61, 200), "PNG"),
        "turned.jpg": encoded(picture(50, 33), "JPEG", exif=_turned()),
        "clear.png": encoded(Image.merge("RGBA", [*square.split(), clear]), "PNG"),
        "small.webp": encoded(picture(20, 24), "WEBP", quality=80),
        "first.gif": encoded(picture(40, 40), "GIF", save_all=True, append_images=[picture(40, 41).resize((40, 40))]),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
