import io
import threading

import pytest
import torch
from PIL import Image
from torchvision import transforms

from mmrl_core.data import views
from mmrl_core.errors import UserError

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
BICUBIC = transforms.InterpolationMode.BICUBIC


def picture(width=40, height=30):
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


def train_view(item="a.jpg", seed=1, epoch=0, image=None):
    return views.train_view(image or picture(), 16, seed, epoch, item, MEAN, STD)


def draws(number):
    return [views.draw_crop_and_flip(picture(), 1, 0, f"{index}.jpg") for index in range(number)]


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
        assert torch.equal(train_view(item), expected)


def test_the_seed_of_a_view_is_fixed_for_all_time():
    assert views.view_seed(1, 0, "Faces/image_0274.jpg") == 12555476740853145683


def test_views_flip_about_half_the_time():
    assert 0.45 < sum(flip for _, flip in draws(1000)) / 1000 < 0.55


def test_crops_cover_between_half_and_all_of_the_image():
    areas = [height * width / (40 * 30) for (_, _, height, width), _ in draws(1000)]
    assert min(areas) >= 0.46 and max(areas) <= 1.0  # rounding to whole pixels moves the lower bound a little
    assert min(areas) < 0.55 and max(areas) > 0.9
    assert len({box for box, _ in draws(100)}) > 50


def test_a_train_view_is_a_normalised_float_square():
    view = train_view()
    assert (view.shape, view.dtype) == ((3, 16, 16), torch.float32)
    white = train_view(image=Image.new("RGB", (32, 32), "white"))
    assert torch.allclose(white, ((1 - torch.tensor(MEAN)) / torch.tensor(STD)).view(3, 1, 1).expand(3, 16, 16))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (16, 16), (9, 50)])
def test_a_test_view_is_what_open_clip_makes(size):
    from open_clip.transform import image_transform

    expected = image_transform(16, is_train=False, mean=MEAN, std=STD)(picture(*size))
    assert torch.equal(views.test_view(picture(*size), 16, MEAN, STD), expected)


def test_batches_stack_the_single_views():
    images, items = [picture(), picture(20, 50)], ["a.jpg", "b.jpg"]
    tests = views.test_views(images, 16, MEAN, STD)
    assert torch.equal(tests[1], views.test_view(images[1], 16, MEAN, STD)) and tests.shape == (2, 3, 16, 16)
    trains = views.train_views(images, 16, 1, 0, items, MEAN, STD)
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
