import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision import transforms

from mmrl_core.data import views
from mmrl_core.data.augmentation import draw
from mmrl_core.data.pixels import pixels
from mmrl_core.errors import UserError
from tests.support.photographs import needs_photographs

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SETTINGS = views.ViewSettings(16, MEAN, STD)
BICUBIC = transforms.InterpolationMode.BICUBIC


def picture(width=40, height=30):
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


def train_view(item="a.jpg", seed=1, epoch=0, image=None, **how):
    return views.train_view(image or picture(), SETTINGS, seed, epoch, item, **how)


def draws(number, augmentation="crop+flip"):
    return [draw(40, 30, 1, 0, f"{index}.jpg", augmentation) for index in range(number)]


def test_a_view_depends_on_seed_epoch_and_item_alone():
    first = train_view()
    torch.rand(5)
    torch.manual_seed(99)
    assert torch.equal(first, train_view())
    for other in (train_view(seed=2), train_view(epoch=1), train_view(item="b.jpg")):
        assert not torch.equal(first, other)


def test_a_view_leaves_the_global_generator_as_it_was():
    state = torch.get_rng_state()
    train_view()
    assert torch.equal(state, torch.get_rng_state())


def test_views_made_in_threads_are_the_ones_made_alone():
    names = [f"{index}.jpg" for index in range(60)]
    alone, together = {name: train_view(name) for name in names}, {}
    threads = [
        threading.Thread(target=lambda part=names[start::4]: together.update({name: train_view(name) for name in part}))
        for start in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[name], together[name]) for name in names)


def test_a_view_is_the_one_torchvisions_own_transforms_give_under_its_seed():
    reference = transforms.Compose([
        transforms.RandomResizedCrop(16, scale=(0.5, 1.0), interpolation=BICUBIC),
        transforms.RandomHorizontalFlip(0.5),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    for item in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(views.view_seed(1, 0, item))
            expected = reference(picture())
        assert torch.equal(views.normalised(train_view(item, views="pillow"), SETTINGS), expected)


@pytest.mark.parametrize("size", [(500, 375), (40, 30), (30, 41), (9, 100), (100, 9), (1, 1), (2, 3)])
def test_what_is_drawn_is_what_torchvision_draws_under_the_same_seed(size):
    reference = transforms.RandomResizedCrop(16, scale=(0.5, 1.0))
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4)
    for item in map(str, range(50)):
        drawn = draw(*size, 1, 0, item, "crop+flip+colour")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(views.view_seed(1, 0, item))
            box = reference.get_params(Image.new("1", size), reference.scale, reference.ratio)
            flip = torch.rand(1).item() < 0.5
            order, *factors = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None)
        names = ("brightness", "contrast", "saturation")
        assert drawn == (box, flip, [(names[place], factors[place]) for place in order if place < 3])


@pytest.mark.parametrize("kind", ["fast", "pillow"])
def test_colours_are_those_of_torchvision_after_crop_and_flip(kind):
    plain = train_view("b.jpg", views=kind)
    expected = Image.fromarray(plain.permute(1, 2, 0).numpy())
    for colour, factor in draw(40, 30, 1, 0, "b.jpg", "crop+flip+colour").colours:
        expected = getattr(transforms.functional, f"adjust_{colour}")(expected, factor)
    found = train_view("b.jpg", views=kind, augmentation="crop+flip+colour")
    assert torch.equal(found, transforms.functional.pil_to_tensor(expected)) and not torch.equal(found, plain)


@pytest.mark.parametrize("kind", ["fast", "pillow"])
def test_an_augmentation_leaves_out_what_it_does_not_name(kind):
    flipped = next(f"{index}.jpg" for index, drawn in enumerate(draws(20)) if drawn.flip)
    both, crop = train_view(flipped, views=kind), train_view(flipped, views=kind, augmentation="crop")
    assert torch.equal(both.flip(-1), crop)
    assert not any(drawn.flip for drawn in draws(100, "crop"))
    none = train_view(flipped, views=kind, augmentation="none")
    assert torch.equal(views.normalised(none, SETTINGS), views.test_view(picture(), SETTINGS))


@needs_photographs
def test_fast_views_of_photographs_are_pillows_to_two_levels():
    settings, folder = SETTINGS._replace(size=224), Path(os.environ["MMRL_TEST_DATA"], "caltech-101")
    means = []
    for path in sorted(folder.rglob("image_0001.jpg"))[::4]:
        encoded = path.read_bytes()
        one = views.train_view(pixels(encoded, path.name, 224), settings, 1, 0, path.name).int()
        other = views.train_view(views.decode(encoded, path.name), settings, 1, 0, path.name, views="pillow").int()
        assert (one - other).abs().max() <= 4
        means.append((one - other).abs().double().mean())
    assert len(means) > 20 and max(means) < 0.05


def test_the_seed_of_a_view_is_fixed_for_all_time():
    assert views.view_seed(1, 0, "Faces/image_0274.jpg") == 12555476740853145683


def test_views_flip_about_half_the_time():
    assert 0.45 < sum(drawn.flip for drawn in draws(1000)) / 1000 < 0.55


def test_crops_cover_between_half_and_all_of_the_image():
    areas = [height * width / (40 * 30) for (_, _, height, width), *_ in draws(1000)]
    assert min(areas) >= 0.46 and max(areas) <= 1.0  # rounding to whole pixels moves the lower bound a little
    assert min(areas) < 0.55 and max(areas) > 0.9
    assert len({drawn.box for drawn in draws(100)}) > 50


def test_a_train_view_is_a_square_of_bytes_that_is_normalised_later():
    view = train_view()
    assert (view.shape, view.dtype) == ((3, 16, 16), torch.uint8)
    assert (views.normalised(view, SETTINGS).shape, views.normalised(view, SETTINGS).dtype) == (
        view.shape,
        torch.float32,
    )
    white = views.normalised(train_view(image=Image.new("RGB", (32, 32), "white")), SETTINGS)
    assert torch.allclose(white, ((1 - torch.tensor(MEAN)) / torch.tensor(STD)).view(3, 1, 1).expand(3, 16, 16))


@pytest.mark.parametrize("interpolation", views.INTERPOLATIONS)
@pytest.mark.parametrize("resize_mode", views.RESIZE_MODES)
@pytest.mark.parametrize("size", [(40, 30), (30, 40), (31, 47), (16, 16), (9, 50), (5, 9)])
def test_a_test_view_is_what_open_clip_makes(size, resize_mode, interpolation):
    how = {"mean": MEAN, "std": STD, "resize_mode": resize_mode, "interpolation": interpolation}
    expected = image_transform(16, is_train=False, **how)(picture(*size))
    assert torch.equal(views.test_view(picture(*size), views.ViewSettings(16, **how)), expected)


@pytest.mark.parametrize("interpolation", views.INTERPOLATIONS)
@pytest.mark.parametrize("size", [(1, 60), (60, 1), (3, 250), (333, 30), (30, 333), (400, 39), (39, 391)])
def test_a_long_image_is_cropped_before_it_is_scaled_to_the_same_pixels_but_for_rounding(size, interpolation):
    expected = image_transform(16, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation)
    found = views.test_view(picture(*size), views.ViewSettings(16, (0, 0, 0), (1, 1, 1), interpolation=interpolation))
    assert (found - expected(picture(*size))).abs().max() <= 1.01 / 255  # levels


HUNGRY = """
import resource
import torch
from PIL import Image
from mmrl_core.data import views
torch.set_num_threads(1)
settings = [views.ViewSettings(224, (0, 0, 0), (1, 1, 1), mode) for mode in views.RESIZE_MODES]
views.test_view(Image.new("RGB", (8, 8)), settings[0])  # what is loaded only once is not counted
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 1_000_000_000,) * 2)
for size in ((1, 20_000), (20_000, 1)):
    image = Image.new("RGB", size, "red")
    for each in settings:
        assert views.test_view(image, each).shape == (3, 224, 224)
    assert views.train_view(image, settings[0], 1, 0, "a").shape == (3, 224, 224)
"""


def test_a_long_image_takes_no_memory_for_what_is_cropped():
    subprocess.run([sys.executable, "-c", HUNGRY], check=True, timeout=300)


def test_training_scales_as_the_weights_ask():
    bilinear = SETTINGS._replace(interpolation="bilinear")
    found = views.normalised(views.train_view(picture(), bilinear, 1, 0, "a.jpg", "pillow"), SETTINGS)
    (top, left, height, width), flip, _ = draw(40, 30, 1, 0, "a.jpg", "crop+flip")
    part = picture().crop((left, top, left + width, top + height)).resize((16, 16), Image.Resampling.BILINEAR)
    expected = transforms.functional.to_tensor(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else part)
    assert torch.equal(found, transforms.functional.normalize(expected, MEAN, STD))
    fast = views.train_view(picture(), bilinear, 1, 0, "a.jpg")
    near = views.normalised(fast, SETTINGS) - found
    assert near.abs().max() < 3 / 255 / min(STD) and not torch.equal(fast, train_view())


def test_batches_stack_the_single_views():
    images, items = [picture(), picture(20, 50)], ["a.jpg", "b.jpg"]
    tests = views.test_views(images, SETTINGS)
    assert torch.equal(tests, views.normalised(views.test_squares(images, SETTINGS), SETTINGS))
    assert torch.equal(tests[1], views.test_view(images[1], SETTINGS)) and tests.shape == (2, 3, 16, 16)
    trains = views.train_views(images, SETTINGS, 1, 0, items)
    assert torch.equal(trains[1], train_view("b.jpg", image=images[1])) and trains.shape == (2, 3, 16, 16)


def encoded(image, file_format):
    buffer = io.BytesIO()
    image.save(buffer, format=file_format)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_decoding_gives_rgb_whatever_the_file_holds(mode):
    file_format = "TIFF" if mode == "CMYK" else "PNG"
    assert views.decode(encoded(picture().convert(mode), file_format), "a").mode == "RGB"


@pytest.mark.parametrize(
    "damaged", [b"", b"GIF89a", encoded(picture(), "PNG")[:200], encoded(picture(), "JPEG")[:-50],
                encoded(picture(), "EPS")],
    ids=["empty", "header only", "cut png", "cut jpeg", "postscript"],
)  # fmt: skip
def test_an_unreadable_image_is_named_on_one_line(damaged):
    with pytest.raises(UserError, match="cat/a.jpg") as raised:
        views.decode(damaged, "cat/a.jpg")
    assert "\n" not in str(raised.value) and "0x" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11, 30])
def test_an_image_of_too_many_pixels_is_refused(monkeypatch, side):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="bomb.png"):
        views.decode(encoded(picture(side, side), "PNG"), "bomb.png")
