"""Reading an image writes nothing, whatever its file holds."""

import contextlib
import io
import logging
import struct
import threading
import warnings

import pytest
from PIL import Image

from mmrl_core.data.images import decode, size_of, to_rgb
from mmrl_core.data.quiet import reading
from mmrl_core.errors import UserError
from tests.core.data.odd_images import encoded, png

TAGS = 4000  # of a directory; libtiff takes no more than 4096


def with_tags(entries: list[bytes], compression: str | None = "tiff_lzw") -> bytes:
    """A whole TIFF with these entries behind those of its directory; libtiff reads those that are compressed."""
    image = encoded(Image.new("RGB", (64, 64), "red"), "TIFF", compression=compression)
    start = struct.unpack("<I", image[4:8])[0]
    count = struct.unpack("<H", image[start : start + 2])[0]
    own = image[start + 2 : start + 2 + 12 * count]
    after = len(image) + len(image) % 2
    moved = image[:4] + struct.pack("<I", after) + image[8:].ljust(after - 8, b"\0")
    return moved + struct.pack("<H", count + len(entries)) + own + b"".join(entries) + bytes(4)


def damaged_fax() -> bytes:
    """Each of its thousands of lines may hold a mistake."""
    image = bytearray(encoded(Image.effect_noise((256, 3000), 90).convert("1"), "TIFF", compression="group3"))
    image[8 : len(image) // 2 : 97] = bytes(len(range(8, len(image) // 2, 97)))
    return bytes(image)


TALKATIVE = {
    "tags of an unknown type": lambda: with_tags([struct.pack("<HHII", 400 + at, 99, 1, 1) for at in range(TAGS)]),
    "tags beyond the end": lambda: with_tags(
        [struct.pack("<HHII", 40_000 + at, 7, 100, 4_000_000_000) for at in range(TAGS)], None
    ),
    "tags of too many values": lambda: with_tags([struct.pack("<HHII", 274, 3, 9, 8)]),
    "a damaged fax": damaged_fax,
    "an animation without frames": lambda: png(1)[:33] + bytes.fromhex("000000086163544c000000000000000075" "3f4e5a")
    + png(1)[33:],
}  # fmt: skip


@pytest.mark.parametrize("kind", TALKATIVE)
def test_a_file_of_which_much_could_be_said_writes_nothing(kind, capfd, caplog):
    image = TALKATIVE[kind]()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        size_of(image)
        with contextlib.suppress(UserError):
            to_rgb(decode(image, "a"), "a")
    assert (told, caplog.records) == ([], [])
    assert capfd.readouterr() == ("", "")


def test_warnings_of_others_are_heard_while_an_image_is_read():
    def other() -> None:
        warnings.warn("of another thread", stacklevel=1)
        logging.getLogger("PIL.TiffImagePlugin").error("of another thread")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with reading():
            warnings.warn("of this thread", stacklevel=1)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        warnings.warn("afterwards", stacklevel=1)
    assert [str(one.message) for one in told] == ["of another thread", "afterwards"]


def test_many_threads_that_read_leave_the_filters_as_they_are():
    image = TALKATIVE["tags of too many values"]()

    def read_many() -> None:
        for _ in range(50):
            decode(image, "a")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        decode(image, "a")
        before = list(warnings.filters)
        threads = [threading.Thread(target=read_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before
    assert told == []


def test_the_size_is_that_of_the_header_and_never_warns(monkeypatch):
    assert size_of(encoded(Image.new("L", (70, 30)), "JPEG")) == (70, 30)
    assert [size_of(wrong) for wrong in (b"", b"no image", png(1)[:20])] == [(0, 0)] * 3
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert size_of(encoded(Image.new("1", (15, 10)), "PNG")) == (15, 10)
        assert size_of(encoded(Image.new("1", (150, 10)), "PNG")) == (0, 0)
    with pytest.warns(Image.DecompressionBombWarning):  # of a program's own images Pillow warns as ever
        Image.open(io.BytesIO(encoded(Image.new("1", (15, 10)), "PNG")))
