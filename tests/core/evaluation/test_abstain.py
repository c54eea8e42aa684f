"""Abstaining: the threshold is exact, and a card's entry keeps what it says of the images it was set on."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrl_core.data.shards import Example
from mmrl_core.data.views import normalised
from mmrl_core.errors import UserError
from mmrl_core.evaluation import abstain
from mmrl_core.evaluation.scores import test_batch as views_of
from mmrl_core.method.model import AdaptedCLIP
from tests.support.small import small_adapter, small_backbone


@pytest.fixture(scope="module")
def model():
    backbone = small_backbone()
    return AdaptedCLIP(backbone, small_adapter(backbone), ["cat", "dog"], "a {}.").eval()


def examples(n: int) -> list[Example]:
    encoded = []
    for seed in range(n):
        noise = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        file = io.BytesIO()
        Image.fromarray(noise.numpy()).save(file, format="PNG")
        encoded.append(file.getvalue())
    return [Example(f"{i}", f"{i}.png", 0, "cat", image) for i, image in enumerate(encoded)]


@torch.inference_mode()
def confidences(model: AdaptedCLIP, shown: list[Example]) -> list[float]:
    return abstain.confidence(model(normalised(views_of(model.backbone, shown), model.backbone.view_settings))).tolist()


@pytest.mark.parametrize(
    ("confidence", "keep", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], 0.75, 0.2),
        ([0.4, 0.1, 0.3, 0.2], 0.76, 0.1),
        ([0.1, 0.2, 0.3, 0.4], 1.0, 0.1),
        ([0.1, 0.2, 0.3, 0.4], 0.01, 0.4),
        ([0.3, 0.3, 0.3, 0.1], 0.5, 0.3),  # ties: more are kept than asked for, and no larger value keeps enough
        ([0.5], 0.95, 0.5),
        (list(range(100)), 0.07, 93),  # 0.07 * 100 is 7.000000000000001
        (list(range(20)), 0.95, 1),
    ],
)
def test_the_threshold_is_the_largest_value_that_enough_images_reach(confidence, keep, expected):
    assert abstain.threshold(confidence, keep) == expected


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0.001, 1.0))
def test_the_threshold_keeps_the_share_and_the_next_value_does_not(confidence, keep):
    chosen = abstain.threshold(confidence, keep)
    share = {value: sum(one >= value for one in confidence) / len(confidence) for value in confidence}
    assert share[chosen] >= keep
    assert all(share[value] < keep for value in confidence if value > chosen)


@pytest.mark.parametrize(("confidence", "keep"), [([], 0.95), ([0.5], 0.0), ([0.5], 1.1)])
def test_no_threshold_comes_of_no_image_or_an_impossible_share(confidence, keep):
    with pytest.raises(ValueError, match="cannot keep"):
        abstain.threshold(confidence, keep)


def test_a_calibrated_threshold_keeps_the_share_of_the_images_it_was_set_on(model):
    shown = examples(20)
    found = confidences(model, shown)
    entry = abstain.abstain_card(found)
    assert entry == {"confidence": "class_cosine", "keep": 0.95, "threshold": entry["threshold"], "images": 20}
    assert sum(one >= entry["threshold"] for one in found) == 19
    assert -1 <= min(found) < max(found) <= 1


def test_the_image_that_sets_the_threshold_is_kept_whatever_its_last_bits():
    confidences = [0.31, 0.42, 0.53, 0.64]
    set_by = abstain.threshold(confidences, 0.75)
    assert set_by == 0.42
    for other in (set_by, np.nextafter(np.float32(set_by), np.float32(0)), np.float32(set_by) - 2e-6):
        assert not abstain.is_below(float(other), set_by)
    assert abstain.is_below(0.4199, set_by)


def test_without_validation_images_there_is_no_threshold():
    assert abstain.abstain_card([]) is None


def test_the_threshold_of_a_card_is_read_back_and_no_other_confidence_passes_for_it(model):
    entry = abstain.abstain_card(confidences(model, examples(3)))
    assert abstain.card_threshold({"abstain": entry}) == entry["threshold"]
    for card in ({}, {"abstain": None}, {"abstain": {**entry, "confidence": "probability"}}):
        with pytest.raises(UserError, match="or give --threshold"):
            abstain.card_threshold(card)
