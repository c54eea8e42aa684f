"""The held-out signboards: words of their own, halves that share words and no pair, the same pixels anywhere."""

import hashlib
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmrl_core.data.catalog import open_source
from mmrl_core.data.embedded import objects
from mmrl_core.data.embedded.signboards import BOARDS, CLASSES, COLOURS, SHAPES, scene
from mmrl_core.data.splits import base_novel
from mmrl_core.renders.objects import COLOURS as ALL_COLOURS
from mmrl_core.renders.objects import SHAPES as ALL_SHAPES

# sha256 of the pixels of every hundredth test image; those of all pictures give PICTURES.
SAMPLE = "3a8a32e68cd807d3be7b536ae0924ff64be48ba20499ae7f1bedce6109a601ca"


@pytest.fixture(scope="module")
def signboards():
    return open_source("signboards", "")


def pixels(source, item) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(source.read(item))))


def test_its_words_are_all_that_objects_leaves_and_no_class_is_named_after_a_board():
    assert set(COLOURS) == set(ALL_COLOURS) - set(objects.COLOURS)
    assert set(SHAPES) == set(ALL_SHAPES) - set(objects.SHAPES)
    assert not set(BOARDS) & set(COLOURS)


def test_every_word_occurs_in_both_halves_and_no_pair_in_both():
    halves = [{CLASSES[label] for label in half} for half in base_novel(range(len(CLASSES)))]
    assert [len(half) for half in halves] == [12, 12] and not halves[0] & halves[1]
    for half in halves:
        assert {word for pair in half for word in pair} == {*COLOURS, *SHAPES}


def test_it_has_as_many_images_as_objects(signboards):
    assert signboards.class_names[:2] == ["green heart", "green ring"]
    for split, count in objects.COUNTS.items():
        assert set(Counter(item.label for item in signboards.items(split)).values()) == {count}


def test_its_pixels_are_the_same_on_every_machine(signboards):
    shown = b"".join(pixels(signboards, item).tobytes() for item in signboards.test[::100])
    assert hashlib.sha256(shown).hexdigest() == SAMPLE


def test_the_fog_leaves_neither_black_nor_full_colour():
    pictures = np.stack([scene(np.random.default_rng(seed), *CLASSES[seed % 24]) for seed in range(48)]) / 255
    assert np.quantile(pictures, 0.01) > 0.15
    assert np.quantile(pictures.max(-1) - pictures.min(-1), 0.99) < 0.75
