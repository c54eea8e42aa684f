"""Heads: what they compute from frozen features, their tensors, and whose column is whose."""

import numpy as np
import pytest
import torch

from mmrl_core.method.heads import ImageCache, LinearProbe, columns_of, empty_head
from mmrl_core.method.shapes import head_shapes
from tests.support.small import random_images, small_backbone, small_head

FEATURES = torch.nn.functional.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_a_probe_is_an_affine_map():
    probe = small_head(small_backbone(), "linear", 4)[0]
    expected = FEATURES.numpy() @ probe.weight.numpy().T + probe.bias.numpy()
    assert probe(FEATURES).numpy() == pytest.approx(expected, abs=1e-4)


def test_every_cached_image_votes_for_its_class_the_more_the_nearer():
    cache = ImageCache(FEATURES[:4], [1, 0, 3], sharpness=7.0)
    cosines = (FEATURES @ FEATURES[:4].T).numpy()
    votes = np.exp(-7.0 * (1 - cosines))
    expected = np.stack([votes[:, 0], np.zeros(5), votes[:, 1:].sum(-1)], axis=-1)
    assert cache(FEATURES).numpy() == pytest.approx(expected, abs=1e-5)
    assert cache(FEATURES)[0, 0] == pytest.approx(1, abs=1e-5)  # its own image


@pytest.mark.parametrize("kind", ["linear", "cache"])
def test_a_heads_tensors_are_those_that_its_card_says(kind):
    head, card = small_head(small_backbone(), kind, 4)
    state = {f"head.{name}": tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    assert state == head_shapes(card, 4, 32)
    again = empty_head(card, 4, 32)
    again.load_state_dict(head.state_dict())
    assert again(FEATURES).equal(head(FEATURES))
    assert not list(head.parameters()) and isinstance(head, LinearProbe) == (kind == "linear")


@pytest.mark.parametrize(
    ("names", "trained", "columns"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2]),
        (["c", "a"], ["a", "b", "c"], [2, 0]),
        (["x", "b", "y"], ["a", "b", "c"], [-1, 1, -1]),
        (["x", "y"], ["a", "b"], [-1, -1]),
        (["a", "b", "a"], ["a", "b", "a"], [0, 1, 2]),  # the first of the name, then the second
        (["b", "a", "a"], ["a", "b", "a"], [1, 0, 2]),
        (["a", "a", "a"], ["a", "b", "a"], [0, 2, 2]),
        (["b", "b", "x"], ["a", "b"], [1, 1, -1]),
        ([], ["a", "b"], []),
    ],
)
def test_classes_have_the_columns_of_the_trained_ones_of_their_names(names, trained, columns):
    assert columns_of(names, trained).tolist() == columns


def test_heads_read_the_features_that_the_backbone_gives():
    backbone = small_backbone()
    head, _ = small_head(backbone, "cache", 3)
    assert head(backbone.encode_image(random_images(2))).shape == (2, 3)
