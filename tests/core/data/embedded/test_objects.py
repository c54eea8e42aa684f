"""The rendered objects: what its classes are, and that its pictures depend on their path alone."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmrl_core.data.catalog import open_source
from mmrl_core.data.embedded.objects import CLASSES, COLOURS, PATTERNS, SHAPES, TEMPLATES, scene
from mmrl_core.data.splits import base_novel


@pytest.fixture(scope="module")
def objects():
    return open_source("objects", "")


def test_every_combination_is_a_class_and_half_of_them_are_base(objects):
    assert len(set(CLASSES)) == len(PATTERNS) * len(COLOURS) * len(SHAPES) == len(objects.class_names)
    assert objects.class_names[0] == "striped red circle"
    assert objects.templates == TEMPLATES


def test_every_word_occurs_in_both_halves_and_no_combination_in_both(objects):
    halves = [{CLASSES[label] for label in half} for half in base_novel(range(len(CLASSES)))]
    assert len(halves[0]) == len(halves[1]) and not halves[0] & halves[1]
    for half in halves:
        assert {word for shown in half for word in shown} == {*PATTERNS, *COLOURS, *SHAPES}
        assert {(shown.colour, shown.shape) for shown in half} == {(c, s) for c in COLOURS for s in SHAPES}


def test_the_splits_have_their_counts_a_class_and_share_no_picture(objects):
    for split, count in (("train", 40), ("val", 20), ("test", 60)):
        assert set(Counter(item.label for item in objects.items(split)).values()) == {count}
    first = [objects.read(objects.items(split)[0]) for split in ("train", "val", "test")]
    assert len(set(first)) == 3


def test_a_picture_depends_on_its_path_alone(objects):
    item = objects.test[77]
    before = objects.read(item)
    objects.read(objects.test[3])
    assert open_source("objects", "").read(item) == before
    image = Image.open(io.BytesIO(before))
    assert (image.format, image.size, image.mode) == ("PNG", (32, 32), "RGB")


def test_the_light_takes_blue_from_every_scene():
    pictures = np.stack([scene(np.random.default_rng(seed), CLASSES[seed % len(CLASSES)]) for seed in range(60)])
    ground = pictures[:, :3, :3].reshape(-1, 3).mean(0)
    assert ground[0] > 1.15 * ground[1] > 1.3 * ground[2]
