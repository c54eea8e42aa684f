import io
import re
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from mmrl_core.data.images import check, decode
from mmrl_core.errors import UserError
from tests.core.data.odd_images import encoded, halves, oriented, png, two_frames

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)
HEIC = "JPEG, or `pip install 'mmrl-ops[heif]'`"  # what to make of one
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def pixel(image: bytes, at=(0, 0)):
    rgb = decode(image, "a")
    assert rgb.mode == "RGB"
    return rgb.getpixel(at)


def near(found, expected, within=6):
    return all(abs(a - b) <= within for a, b in zip(found, expected, strict=True))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"progressive": True}, {"subsampling": 2}], ids=str)
def test_an_ordinary_photograph_keeps_the_pixels_that_pillow_decodes(options):
    image = encoded(Image.fromarray(noise(30, 40, 3)), "JPEG", **options)
    assert np.array_equal(decode(image, "a"), Image.open(io.BytesIO(image)))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_a_file_cut_short_is_named(file_format):
    image = encoded(Image.fromarray(noise(64, 64, 3)), file_format)
    for read in (decode, check):
        with pytest.raises(UserError, match="cat/a.img"):
            read(image[: len(image) // 2], "cat/a.img")


def test_a_png_with_a_flipped_byte_is_named():
    image = bytearray(encoded(Image.fromarray(noise(64, 64, 3)), "PNG"))
    image[len(image) // 2] ^= 255
    with pytest.raises(UserError, match="cat/a.png"):
        decode(bytes(image), "cat/a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header_before_its_pixels_are_made(monkeypatch):
    bomb = encoded(Image.new("1", (3000, 3000)), "PNG")
    assert len(bomb) < 3000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8_000_000)
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(UserError, match="3000 x 3000 pixels, more than the limit of 8000000"):
        decode(bomb, "bomb.png")


@pytest.mark.parametrize(("ink", "expected"), [((0, 255, 255, 0), RED), ((0, 0, 0, 255), BLACK), ((0,) * 4, WHITE)])
@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_ink_becomes_light(file_format, ink, expected):
    assert near(pixel(encoded(Image.new("CMYK", (8, 8), ink), file_format)), expected)


def palette_image(**options):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    return encoded(image, options.pop("file_format", "PNG"), **options)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_palette_becomes_its_colours_and_its_transparent_one_white(file_format):
    solid = palette_image(file_format=file_format)
    assert (pixel(solid), pixel(solid, (1, 0))) == (RED, BLUE)
    clear = palette_image(file_format=file_format, transparency=0)
    assert (pixel(clear), pixel(clear, (1, 0))) == (WHITE, BLUE)


def test_a_palette_of_half_transparent_colours_is_laid_over_white():
    assert near(pixel(palette_image(transparency=bytes([128, 255]))), (255, 127, 127), 1)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_over_white_and_not_over_the_colour_below_it(file_format):
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    for alpha, expected in ((0, WHITE), (255, RED), (128, (255, 127, 127))):
        assert near(pixel(encoded(Image.new("RGBA", (8, 8), (*RED, alpha)), file_format, **options)), expected, 1)


def test_grey_with_transparency_is_laid_over_white():
    assert pixel(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG")) == WHITE
    assert pixel(encoded(Image.new("LA", (4, 4), (40, 255)), "PNG")) == (40, 40, 40)


@pytest.mark.parametrize(("mode", "clear"), [("L", 0), ("RGB", (0, 0, 0)), ("1", 0)])
def test_a_colour_that_stands_for_transparent_becomes_white(mode, clear):
    assert pixel(encoded(Image.new(mode, (4, 4), 0), "PNG", transparency=clear)) == WHITE


def test_an_opaque_alpha_channel_changes_no_pixel():
    colours = noise(20, 20, 3)
    opaque = np.concatenate([colours, np.full((20, 20, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(decode(encoded(Image.fromarray(opaque), "PNG"), "a"), colours)


def sixteen_bit_pgm(values):
    return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "encode",
    [lambda values: encoded(Image.fromarray(values), "PNG"), lambda values: encoded(Image.fromarray(values), "TIFF"),
     sixteen_bit_pgm],
    ids=["png", "tiff", "pgm"],
)  # fmt: skip
def test_sixteen_bit_grey_is_scaled_and_not_clipped(encode):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    grey = np.asarray(decode(encode(values), "a"))
    assert np.array_equal(grey[..., 0], np.arange(256).reshape(16, 16))
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_sixteen_bit_grey_of_the_other_byte_order_is_scaled_too():
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 32896, 65535))
    assert np.asarray(decode(encoded(image, "TIFF"), "a"))[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize("value", [-1, 255, 65535, 2**31 - 1])
def test_signed_integers_are_refused_whatever_they_are(value):
    image = Image.fromarray(np.full((2, 2), value, np.int32))
    with pytest.raises(UserError, match="a.tif .*signed pixels have no agreed black; save it with 8 or 16 bits"):
        decode(encoded(image, "TIFF"), "a.tif")


def test_floating_point_pixels_are_refused():
    image = Image.fromarray(np.full((2, 2), 0.5, np.float32))
    with pytest.raises(UserError, match="a.tif .*no agreed range; save it with 8 or 16 bits"):
        decode(encoded(image, "TIFF"), "a.tif")


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_is_black_and_white(file_format):
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert (pixel(encoded(image, file_format)), pixel(encoded(image, file_format), (1, 0))) == (BLACK, WHITE)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("orientation", "size", "first"), [
    (1, (16, 8), RED), (2, (16, 8), BLUE), (3, (16, 8), GREEN), (4, (16, 8), GREEN),
    (5, (8, 16), RED), (6, (8, 16), GREEN), (7, (8, 16), GREEN), (8, (8, 16), BLUE),
])  # fmt: skip
def test_a_photograph_is_turned_upright_once(file_format, orientation, size, first):
    upright = decode(oriented(file_format, orientation), "a")
    assert upright.size == size
    assert near(upright.getpixel((1, 1)), first, 60)
    assert np.array_equal(upright, ImageOps.exif_transpose(Image.open(io.BytesIO(oriented(file_format, orientation)))))


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_is_none_turns_nothing(orientation):
    assert decode(oriented("PNG", orientation), "a").tobytes() == halves().tobytes()


def test_damaged_metadata_do_not_cost_the_image():
    assert decode(encoded(halves(), "PNG", exif=b"Exif\0\0MM nonsense"), "a").tobytes() == halves().tobytes()


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_an_animation_or_several_pages_the_first_counts(file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    image = two_frames(file_format, **options)
    assert Image.open(io.BytesIO(image)).n_frames == 2
    assert pixel(image) == RED


def test_of_a_phones_multi_picture_file_the_first_counts():
    image = two_frames("MPO")
    assert Image.open(io.BytesIO(image)).format == "MPO"
    assert near(pixel(image), RED)


def test_a_format_that_is_not_listed_is_refused_by_name():
    with pytest.raises(UserError, match="a.im is not an image of a known format"):
        decode(encoded(Image.new("RGB", (16, 16)), "IM"), "a.im")


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize(("beginning", "kind", "target"), [
    (b"\0\0\0\x18ftypheic", "HEIC", HEIC), (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC", HEIC),
    (b"\0\0\0\x18ftyphevc", "HEIC", HEIC), (b"\0\0\0\x18ftypcrx ", "camera raw", "JPEG"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "JPEG"), (b"\xff\x0a\xfa", "JPEG XL", "JPEG"),
    (encoded(halves(), "JPEG2000"), "JPEG 2000", "JPEG"), (b"FUJIFILMCCD-RAW 0201", "camera raw", "JPEG"),
    (encoded(halves(), "ICO"), "ICO", "PNG"), (encoded(halves(), "EPS"), "PostScript", "PNG"),
    (b"8BPS\0\1", "Photoshop", "PNG"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_known_format_that_is_not_read_is_named_by_its_content_with_what_to_make_of_it(beginning, kind, target):
    message = f"photo.jpg is in the format {kind}, which is not read here; convert it to {target}"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        decode(beginning + bytes(64), "photo.jpg")


def test_heic_is_read_upright_and_on_white():
    from pillow_heif import register_heif_opener

    register_heif_opener()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = decode(encoded(halves(), "HEIF", exif=exif.tobytes()), "a.HEIC")
    assert (turned.size, near(turned.getpixel((1, 1)), GREEN, 60)) == ((8, 16), True)
    assert near(pixel(encoded(Image.new("RGBA", (8, 8), (*RED, 0)), "HEIF")), WHITE)
    image = encoded(halves(), "HEIF")
    assert near(pixel(image), pixel(encoded(halves(), "JPEG")), 60)
    for damaged in (image[:-20], image[:40], b"\0\0\0\x18ftypheic" + bytes(64)):
        with pytest.raises(UserError, match=r"cat/a\.heic"):
            decode(damaged, "cat/a.heic")


@pytest.mark.parametrize("name", ["IMG.NEF", "a.dng", "a.cr2"])
def test_a_raw_file_is_not_taken_for_the_thumbnail_in_it(name):
    with pytest.raises(UserError, match=f"{name} is in the format camera raw, .*convert it to JPEG"):
        decode(encoded(halves(), "TIFF"), name)


def test_avif_is_read_upright_and_on_white():
    assert near(pixel(encoded(Image.new("RGBA", (8, 8), (*RED, 0)), "AVIF")), WHITE)
    turned = decode(oriented("AVIF", 6), "a")
    assert (turned.size, near(turned.getpixel((1, 1)), GREEN, 60)) == ((8, 16), True)
    assert near(pixel(two_frames("AVIF")), RED)
    with pytest.raises(UserError, match="cat/a.avif"):
        decode(encoded(Image.fromarray(noise(64, 64, 3)), "AVIF")[:2000], "cat/a.avif")


def test_decoding_leaves_the_bytes_as_they_are():
    image = png(3)
    assert pixel(image) == (3, 0, 7) and image == png(3)
