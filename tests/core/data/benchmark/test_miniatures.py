"""The embedded data sets beside digits and objects: domain shifts, and letters for transfer."""

import io

import numpy as np
import pytest
from PIL import Image

from mmrl_core.data.catalog import EMBEDDED, fingerprint, open_source
from mmrl_core.data.embedded.digits_shifted import SHIFTS
from mmrl_core.data.shards import write_pool


def pixels(source, number: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(source.read(source.test[number])))).astype(float)


@pytest.mark.parametrize("key", SHIFTS)
def test_a_shift_has_the_test_items_of_digits_and_nothing_to_train_on(key, digits):
    source = open_source(key, "")
    assert source.test == digits.test and not source.train and not source.val
    assert source.class_names == digits.class_names and source.templates == digits.templates[:1]


def test_the_shifts_are_what_their_names_say(digits):
    plain = pixels(digits, 5)
    assert (pixels(open_source("digits_inverted", ""), 5) == 255 - plain).all()
    noise = pixels(open_source("digits_noisy", ""), 5) - plain
    assert 20 < noise.std() < 80 and not (pixels(open_source("digits_noisy", ""), 6) - pixels(digits, 6) == noise).all()
    outlines = pixels(open_source("digits_outlines", ""), 5)
    assert outlines[[0, -1], :2].min() == 255 and outlines[8:24, 8:24].min() < 60  # dark lines on white paper
    turned = pixels(open_source("digits_rotated", ""), 5)
    assert np.abs(turned - plain).mean() > 10 and turned.shape == plain.shape


def test_letters_show_every_capital_in_every_split():
    source = open_source("letters", "")
    assert len(source.class_names) == 26
    for split, count in (("train", 20), ("val", 10), ("test", 40)):
        labels = [item.label for item in source.items(split)]
        assert all(labels.count(label) == count for label in range(26))


@pytest.mark.parametrize("key", [*SHIFTS, "letters"])
def test_a_picture_is_a_function_of_its_path(key):
    first, second = open_source(key, ""), open_source(key, "")
    assert [first.read(item) for item in first.test[::400]] == [second.read(item) for item in second.test[::400]]


def test_every_embedded_data_set_has_a_fingerprint_of_its_own():
    digests = {fingerprint(key, "")["digest"] for key in EMBEDDED}
    assert len(digests) == len(EMBEDDED) >= 7


def test_a_shift_can_be_prepared_as_a_target(tmp_path):
    manifest = write_pool(open_source("digits_inverted", ""), tmp_path)
    assert manifest["counts"] == {"val": 0, "test": 1197}
