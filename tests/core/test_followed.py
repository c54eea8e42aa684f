"""What model.json says of preprocessing is enough: a program that follows it sees what the library sees."""

import numpy as np
import pytest
from PIL import Image

from mmrl_core.data import views
from mmrl_core.data.images import decode
from mmrl_core.export import DECODING, preprocessing, resizing
from tests.core.data.odd_images import ODD, encoded, raw_png, tiff
from tests.core.followed import follow

SIZES = [(40, 30), (30, 41), (31, 47), (53, 32), (32, 32), (20, 90)]  # what is beyond 32 is odd, even, none, far


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=-1).astype(np.uint8))


def levels(*values: int) -> bytes:
    return np.array(values, "<u2").tobytes()


IMAGES = {
    **{f"{name} {size}": make(picture(*size)) for name, make in ODD.items() for size in SIZES},
    "twelve bits": tiff([bytes([0x00, 0x03, 0xE8, 0x7D, 0x0F, 0xFF])], 4, bits=(12,)),
    "white is zero": tiff([levels(0, 1000, 40000, 65535)], 4, bits=(16,), photometric=0),
    "a clear level": raw_png(levels(1000, 40000)[::-1], 2, 16, 0, levels(1000)[::-1]),
    "alpha": encoded(Image.merge("RGBA", [*picture(256, 256).split(), Image.linear_gradient("L")]), "PNG"),
    "turned": encoded(picture(50, 33), "TIFF", tiffinfo={0x0112: 8}),
}  # fmt: skip


@pytest.mark.parametrize("interpolation", views.INTERPOLATIONS)
@pytest.mark.parametrize("resize_mode", views.RESIZE_MODES)
def test_a_program_that_follows_it_sees_every_odd_image_pixel_by_pixel_as_the_library(resize_mode, interpolation):
    settings = views.ViewSettings(32, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), resize_mode, interpolation)
    card = {"image_size": settings.size, "mean": list(settings.mean), "std": list(settings.std), "decoding": DECODING,
            "resizing": resizing(settings)}  # fmt: skip
    for name, image in IMAGES.items():
        assert np.array_equal(follow(card, image)[0], views.test_view(decode(image, name), settings).numpy()), name


def test_the_words_name_every_step_that_the_fields_do():
    for mode, word in {"shortest": "crop 32 x 32", "squash": "to 32 x 32", "longest": "on black"}.items():
        steps = " ".join(preprocessing(views.ViewSettings(32, (0,) * 3, (1,) * 3, mode, "bilinear")))
        for words in ("first frame", "2 ** bits - 1", "white is zero", "over white", "EXIF", "bilinear", word):
            assert words in steps
