import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl_core.data import views
from mmrl_core.data.images import decode
from mmrl_core.data.pictures import Decoded, Pictures
from mmrl_core.data.pixels import pixels, reduction
from mmrl_core.data.sets import image_set
from mmrl_core.data.shards import Example
from mmrl_core.errors import UserError
from tests.core.data.odd_images import ODD, encoded
from tests.support.photographs import needs_photographs

SETTINGS = views.ViewSettings(32, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


def smooth(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(width, height, seed=0, **options):
    return encoded(smooth(width, height, seed), "JPEG", quality=90, **options)


def examples(number, width=64, height=48):
    files = [jpeg(width, height, seed) for seed in range(number)]
    return [Example(f"{index:04}", f"a/{index}.jpg", 0, "a", file) for index, file in enumerate(files)]


def far(found, expected):
    return np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int)).max()


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_is_the_same_picture(name):
    image = ODD[name](smooth(40, 30))
    assert np.array_equal(pixels(image, name, 32).values, decode(image, name))


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_upright_and_knows_its_size(orientation, reduced):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = jpeg(400, 300, exif=exif)
    found, whole = pixels(image, "a.jpg", 32 if reduced else 300), decode(image, "a.jpg")
    assert (found.width, found.height) == whole.size
    assert found.values.shape[:2] == (whole.height // 4, whole.width // 4) if reduced else whole.size[::-1]
    assert far(found.values, whole.resize(found.values.shape[1::-1], Image.Resampling.BOX)) <= 12


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_the_pixels_that_pillow_decodes(mode, options):
    image = encoded(smooth(61, 47).convert(mode), "JPEG", **options)
    assert far(pixels(image, "a.jpg", 64).values, decode(image, "a.jpg")) <= 3


@pytest.mark.parametrize(("size", "side", "factor"), [
    ((500, 375), 224, 1), ((4000, 3000), 224, 8), ((4000, 3000), 336, 4), ((1000, 750), 224, 2), ((5000, 200), 32, 4),
    ((10, 10), 16, 1),
])  # fmt: skip
def test_no_crop_of_a_reduced_image_is_smaller_than_the_view(size, side, factor):
    assert reduction(*size, side) == factor
    if factor > 1:
        boxes = [views.draw(*size, 1, 0, str(item), "crop").box for item in range(300)]
        assert min(min(box[2:]) for box in boxes) // factor >= side


def test_a_view_of_a_reduced_photograph_is_near_that_of_the_whole():
    image = jpeg(1200, 900)
    found = pixels(image, "a.jpg", 32)
    assert found.values.shape == (113, 150, 3)
    for item in map(str, range(20)):
        near = views.train_view(found, SETTINGS, 1, 0, item)
        whole = views.train_view(decode(image, "a"), SETTINGS, 1, 0, item, "pillow")
        assert far(near, whole) <= 24


@pytest.mark.parametrize("damaged", [b"", b"\xff\xd8\xff", jpeg(64, 64)[:-300], jpeg(64, 64)[:100]], ids=len)
def test_an_unreadable_image_is_named_as_ever(damaged):
    with pytest.raises(UserError, match="cat/a.jpg"):
        pixels(damaged, "cat/a.jpg", 32)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(UserError, match="64 x 48 pixels, more than the limit of 2000"):
        pixels(jpeg(64, 48), "a.jpg", 32)


def test_what_a_set_keeps_decoded_stays_within_its_bound():
    one = 64 * 48 * 4
    data = image_set(examples(20), [0], ["a"], "a {}.", budget=5 * one)
    assert isinstance(data.images, Decoded) and data.images.pictures.held == 5 * one
    for index in range(20):
        assert np.array_equal(data.images[index], decode(data.images.examples[index].image, "a"))
        data.images.pixels(index, 32)
        assert data.images.pictures.held <= 5 * one
    assert data.images.pictures.held > 0


def test_a_view_is_the_same_whether_its_image_is_kept_or_not():
    of = examples(6, 200, 150)
    keys = [one.key for one in of]
    kept, not_kept = (Decoded(Pictures(budget), of, keys) for budget in (10**9, 0))
    for index in (0, 3, 0, 5):
        kept[index]
        one, other = (
            views.train_view(images.pixels(index, 32), SETTINGS, 1, 0, str(index)) for images in (kept, not_kept)
        )
        assert torch.equal(one, other)
    assert not_kept.pictures.held == 0 < kept.pictures.held


def test_the_first_image_that_cannot_be_decoded_is_named():
    of = [replace(one, image=b"none") if place in (3, 5) else one for place, one in enumerate(examples(8))]
    with pytest.raises(UserError, match="a/3.jpg is not an image"):
        image_set(of, [0], ["a"], "a {}.")


HUNGRY = """
import io, pathlib
import numpy as np
from PIL import Image
from mmrl_core.data.sets import image_set
from mmrl_core.data.shards import Example
buffer = io.BytesIO()
Image.new("RGB", (500, 375), "red").save(buffer, "JPEG")
def peak():  # MB; ru_maxrss would begin with what the process held that started this one
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1000
def examples(number):
    return (Example(str(index), f"{index}.jpg", 0, "a", buffer.getvalue()) for index in range(number))
image_set(examples(8), [0], ["a"], "a {}.", budget=0)
before = peak()
data = image_set(examples(300), [0], ["a"], "a {}.", budget=20_000_000)
for index in range(300):
    data.images.pixels(index, 224)
print(peak() - before)
"""


@pytest.mark.slow
def test_a_large_set_takes_no_more_memory_than_its_bound_and_what_is_at_work():
    done = subprocess.run([sys.executable, "-c", HUNGRY], check=True, timeout=300, capture_output=True, text=True)
    assert int(done.stdout) < 100  # MB; all of them are 225


@needs_photographs
def test_photographs_have_the_pixels_that_pillow_decodes():
    folder = Path(os.environ["MMRL_TEST_DATA"], "caltech-101")
    for path in sorted(folder.rglob("image_0002.jpg"))[::3]:
        image = path.read_bytes()
        difference = np.asarray(decode(image, "a")).astype(int) - pixels(image, "a", 224).values
        assert np.abs(difference).mean() < 0.2
