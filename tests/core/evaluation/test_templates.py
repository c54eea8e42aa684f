"""The choice among prompt templates, by zero-shot accuracy on labelled images."""

import numpy as np
import pytest

from mmrl_core.clip.backbone import load_backbone
from mmrl_core.data.catalog import open_source
from mmrl_core.data.shards import Example
from mmrl_core.evaluation.templates import template_accuracies


@pytest.fixture(scope="module")
def digits():
    source = open_source("digits", "")
    items = [item for item in source.val if item.label in (1, 3, 8)]
    return source, [Example(item.path, item.path, item.label, item.class_name, source.read(item)) for item in items]


def test_accuracies_are_those_of_the_zero_shot_clip_among_the_given_classes(digits):
    source, examples = digits
    found = template_accuracies(load_backbone("tiny"), source.templates, source.class_names, [1, 3, 8], examples)
    assert list(found) == source.templates
    assert min(found.values()) > 0.7  # three classes: chance is a third


def test_a_template_that_tells_classes_apart_beats_one_that_mixes_them_up(digits):
    source, examples = digits
    names = list(source.class_names)
    names[1], names[3], names[8] = names[3], names[8], names[1]
    right, wrong = (
        template_accuracies(load_backbone("tiny"), source.templates, some, [1, 3, 8], examples)
        for some in (source.class_names, names)
    )
    assert np.mean(list(right.values())) > np.mean(list(wrong.values())) + 0.5
