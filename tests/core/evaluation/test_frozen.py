"""Frozen features of test views."""

import pytest
import torch

from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.evaluation.frozen import frozen_features
from tests.support.small import random_images, small_backbone

IMAGES = random_images(70)  # more than a batch
KEYS = [f"image {place}" for place in range(70)]


def views(places: list[int]) -> torch.Tensor:
    return IMAGES[places]


def test_they_are_the_frozen_clips_own_in_the_order_asked_for():
    backbone = small_backbone()
    found = frozen_features(backbone, KEYS, views)
    torch.testing.assert_close(found, backbone.encode_image(IMAGES), atol=2e-6, rtol=0)
    backwards = frozen_features(backbone, KEYS[::-1], lambda places: views([69 - place for place in places]))
    torch.testing.assert_close(backwards, found.flip(0), atol=2e-6, rtol=0)


@pytest.mark.parametrize("depth", [None, 2])
def test_they_are_the_same_bits_with_a_store_which_asks_for_no_view_twice(tmp_path, depth):
    backbone, store = small_backbone(), FeatureStore(tmp_path, 1e9, depth)
    without, asked = frozen_features(backbone, KEYS, views), []

    def counted(places: list[int]) -> torch.Tensor:
        asked.extend(places)
        return views(places)

    for _ in range(2):
        assert frozen_features(backbone, KEYS, counted, store).equal(without)
    assert asked == list(range(70))


def test_of_no_image_there_are_none():
    backbone = small_backbone()
    assert frozen_features(backbone, [], views).shape == (0, backbone.embed_dim)
