"""Every kind of pixels that Pillow opens: scaled from the file's own range, on white, or refused in one line."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mmrl_core.data.images import check, decode, to_rgb
from mmrl_core.errors import UserError
from tests.core.data.odd_images import ODD, encoded, on_white, raw_png, tiff

LEVELS = [0, 1000, 20000, 32768, 65535]


def row(image: bytes) -> list[tuple[int, ...]]:
    pixels = decode(image, "a")
    assert pixels.mode == "RGB"
    return [pixels.getpixel((x, 0)) for x in range(pixels.width)]


def greys(*levels: float) -> list[tuple[int, ...]]:
    return [(round(level),) * 3 for level in levels]


def over_white(level: float, alpha: float) -> float:
    return level * alpha / 255 + 255 - alpha


def near(found, expected, within=1) -> bool:
    return np.abs(np.array(found) - np.array(expected)).max() <= within


def words(values, order="<") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


def twelve_bits(values) -> bytes:
    bits = "".join(f"{value:012b}" for value in values)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def test_twelve_bits_are_scaled_from_4095():
    values = [0, 1000, 2000, 4095, 17]
    for packed in (False, True):
        image = tiff([twelve_bits(values)], 5, bits=(12,), packed=packed)
        assert row(image) == greys(*(value * 255 / 4095 for value in values))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("photometric", "order"), [(1, "<"), (1, ">"), (0, "<")])
def test_sixteen_bits_are_scaled_from_65535_and_turned_round_where_white_is_zero(photometric, order, packed):
    expected = [level * 255 / 65535 for level in LEVELS]
    image = tiff([words(LEVELS, order)], 5, bits=(16,), photometric=photometric, order=order, packed=packed)
    assert row(image) == greys(*(expected if photometric else [255 - level for level in expected]))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1])
def test_few_bits_are_scaled_and_turned_round_likewise(bits, photometric):
    image = tiff([bytes([0b00011011])], 8 // bits, bits=(bits,), photometric=photometric)
    text, white = f"{0b00011011:08b}", 2**bits - 1
    expected = [int(text[at : at + bits], 2) * 255 / white for at in range(0, 8, bits)]
    assert row(image) == greys(*(expected if photometric else [255 - level for level in expected]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_channels_of_sixteen_bits_are_scaled(order, packed):
    colours = [0x1234, 0x5678, 0xFFFF]
    rgb = tiff([words(colours, order)], 1, bits=(16,) * 3, photometric=2, order=order, packed=packed)
    assert near(row(rgb), [[value * 255 / 65535 for value in colours]])
    clear = tiff([words([*colours, 0x8000], order)], 1, bits=(16,) * 4, photometric=2, order=order, packed=packed,
                 t338=(2,))  # fmt: skip
    assert near(row(clear), [[over_white(value * 255 / 65535, 127.5) for value in colours]])
    ink = tiff([words([0, 0xFFFF, 0xFFFF, 0], order)], 1, bits=(16,) * 4, photometric=5, order=order, packed=packed)
    assert row(ink) == [(255, 0, 0)]


@pytest.mark.parametrize(("bits", "photometric", "pixel", "extra", "expected"), [
    ((8, 8), 1, [64, 128], 2, [over_white(64, 128)] * 3),
    ((8, 8), 1, [64, 128], 1, [64 + 127] * 3),  # the colour was multiplied by its alpha already
    ((8, 8), 1, [64, 128], 0, [64] * 3),  # not said what the second channel is
    ((8,) * 4, 2, [64, 0, 100, 128], 2, [over_white(64, 128), 127, over_white(100, 128)]),
    ((8,) * 4, 2, [64, 0, 100, 128], 1, [64 + 127, 127, 100 + 127]),
    ((8,) * 4, 2, [64, 0, 100, 128], 0, [64, 0, 100]),
    ((8,) * 5, 5, [0, 255, 255, 0, 9], 0, [255, 0, 0]),
])  # fmt: skip
def test_the_alpha_of_a_tiff_counts_as_its_tag_says(bits, photometric, pixel, extra, expected):
    for packed in (False, True):
        image = tiff([bytes(pixel)], 1, bits=bits, photometric=photometric, packed=packed, t338=(extra,))
        assert near(row(image), [expected])


def test_a_palette_with_an_alpha_channel_is_laid_over_white():
    colours = [0, 65535] + [0] * 254 + [0] * 512
    image = tiff([bytes([1, 128])], 1, bits=(8, 8), photometric=3, t338=(2,), t320=colours)
    assert near(row(image), [(255, 127, 127)])


def test_lightness_and_colour_of_a_lab_tiff_become_rgb():
    image = tiff([bytes([255, 0, 0, 0, 0, 0, 138, 81, 70])], 3, bits=(8,) * 3, photometric=8)
    assert near(row(image), [(255, 255, 255), (0, 0, 0), (255, 0, 0)], within=5)  # to profiles' precision


@pytest.mark.parametrize(("bits", "values", "clear", "expected"), [
    (1, [0, 1], 0, [255, 255]), (1, [0, 1], 1, [0, 255]),
    (2, [0, 1, 2, 3], 1, [0, 255, 170, 255]), (4, [5, 10], 5, [255, 170]), (8, [5, 10], 5, [255, 10]),
    (16, [1000, 40000], 1000, [255, 40000 / 257]), (16, [1000, 1001], 1000, [255, 1001 / 257]),
])  # fmt: skip
def test_the_level_of_a_grey_png_that_stands_for_transparent_becomes_white(bits, values, clear, expected):
    text = "".join(f"{value:0{bits}b}" for value in values)
    data = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
    assert row(raw_png(data, len(values), bits, 0, words([clear], ">"))) == greys(*expected)


def test_the_colour_of_a_png_that_stands_for_transparent_becomes_white():
    assert row(raw_png(bytes([1, 2, 3, 4, 5, 6]), 2, 8, 2, words([1, 2, 3], ">"))) == [(255, 255, 255), (4, 5, 6)]


@pytest.mark.parametrize("maxval", [1, 3, 100, 255, 256, 1023, 4095, 65535])
def test_a_pnm_is_scaled_from_the_maximum_that_it_names(maxval):
    values = [0, maxval // 3, maxval]
    data = bytes(values) if maxval < 256 else words(values, ">")
    expected = [value * 255 / maxval for value in values]
    assert near(row(b"P5 3 1 %d\n" % maxval + data), greys(*expected))
    assert near(row(b"P2 3 1 %d\n%d %d %d\n" % (maxval, *values)), greys(*expected))
    assert near(row(b"P6 1 1 %d\n" % maxval + data), [expected])


@pytest.mark.parametrize(("image", "problem"), [
    (tiff([words([0, 40000])], 2, bits=(16,), t339=(2,)), "signed pixels have no agreed black; save it with 8 or 16"),
    (tiff([bytes([0, 200])], 2, bits=(8,), t339=(2,)), "signed pixels have no agreed black; save it with 8 or 16"),
    (tiff([bytes(8)], 2, bits=(32,)), "pixels of 32 bits have no agreed range; save it with 8 or 16 bits"),
    (tiff([bytes(8)], 2, bits=(32,), t339=(3,)), "floating-point pixels have no agreed range; save it with 8 or 16"),
    (tiff([bytes(4)] * 3, 2, bits=(16,) * 3, photometric=2, t284=(2,)), "channels lie apart, which Pillow misreads"),
    (tiff([bytes([255]), bytes([40]), bytes([60])], 1, bits=(8,) * 3, photometric=8, t284=(2,)), "channels lie apart"),
    (tiff([bytes([9]), bytes([255])], 1, bits=(8, 8), packed=True, t338=(2,), t284=(2,)), "channels lie apart, which"),
    (tiff([bytes(6)], 2, bits=(8,) * 3, photometric=6), "colours have a lower resolution than its pixels, which"),
    (raw_png(words([1, 2, 3], ">"), 1, 16, 2, words([1, 2, 3], ">")), "transparent colour has 16 bits, which Pillow"),
    (tiff([bytes(3)], 2, bits=(12,), order=">"), "is a damaged TIFF or one of a kind of pixels that is not read; save"),
    (tiff([bytes(4)], 2, bits=(16,), photometric=0, order=">"), "is a damaged TIFF or one of a kind of pixels"),
    (tiff([bytes(4)], 2, bits=(16,), t339=(3,)), "is a damaged TIFF or one of a kind of pixels"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_has_no_agreed_range_or_is_misread_is_refused_by_name(image, problem):
    with pytest.raises(UserError, match=f"^.*cat/a.tif .*{problem}") as raised:
        decode(image, "cat/a.tif")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError) as checked:
        check(image, "cat/a.tif")
    assert str(checked.value) == str(raised.value)


def test_channels_of_eight_bits_that_lie_apart_are_put_together():
    for packed in (False, True):
        strips = [bytes([1, 2]), bytes([3, 4]), bytes([5, 6])]
        image = tiff(strips, 2, bits=(8,) * 3, photometric=2, packed=packed, t284=(2,))
        assert row(image) == [(1, 3, 5), (2, 4, 6)]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_has_the_pixels_that_pillow_itself_puts_on_white(name, picture):
    image = ODD[name](picture)
    assert np.array_equal(decode(image, name), on_white(image))


@pytest.mark.parametrize("name", ODD)
def test_an_image_that_pillow_has_opened_has_the_same_pixels_as_its_file(name, picture):
    image = ODD[name](picture)
    assert np.array_equal(to_rgb(Image.open(io.BytesIO(image)), name), on_white(image))


@pytest.fixture
def picture() -> Image.Image:
    y, x = np.mgrid[0:21, 0:34]
    return Image.fromarray(np.stack([x * 7, y * 12, (x + y) * 4], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(("mode", "colour", "expected"), [
    ("1", 255, (255,) * 3), ("L", 40, (40,) * 3), ("LA", (40, 0), (255,) * 3), ("La", (0, 0), (255,) * 3),
    ("P", 0, (0, 0, 0)), ("PA", (0, 0), (255,) * 3), ("RGB", (9, 8, 7), (9, 8, 7)), ("RGBX", (9, 8, 7, 0), (9, 8, 7)),
    ("RGBA", (9, 8, 7, 0), (255,) * 3), ("RGBa", (0, 0, 0, 0), (255,) * 3), ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ("YCbCr", (90, 128, 128), (90,) * 3), ("HSV", (0, 255, 255), (255, 0, 0)), ("LAB", (255, 128, 128), (255,) * 3),
    ("I;16", 32896, (128,) * 3), ("I;16B", 32896, (128,) * 3), ("I", 5, None), ("F", 0.5, None),
])  # fmt: skip
def test_an_image_in_memory_is_seen_on_white_in_every_mode_of_pillow(mode, colour, expected):
    image = Image.new(mode, (2, 2), colour)
    if expected:
        assert near(to_rgb(image, "a").getpixel((1, 1)), expected, within=2 if mode == "LAB" else 0)
    else:
        with pytest.raises(UserError, match="no agreed range"):
            to_rgb(image, "a")
    assert image.mode == mode


def test_an_orientation_turns_sixteen_bits_once():
    values = np.array([[0, 65535]], np.uint16)
    upright = decode(encoded(Image.fromarray(values), "TIFF", tiffinfo={0x0112: 6}), "a")
    assert (upright.size, upright.getpixel((0, 0)), upright.getpixel((0, 1))) == ((1, 2), (0,) * 3, (255,) * 3)
