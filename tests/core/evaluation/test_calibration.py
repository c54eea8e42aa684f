"""Temperatures and fusion: what few-shot validation decides, and that it decides nothing where it does not help."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrl_core.evaluation.calibration import (
    OWN_WEIGHTS,
    SCALES,
    SOFTENING,
    Fusion,
    cross_entropy,
    fusion,
    helps,
    loss,
    temperature,
)
from mmrl_core.rounding import SCORE
from tests.core.evaluation.of_probabilities import expected_calibration_error


def drawn(n: int, sharpness: float, seed: int = 0, n_classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits that are the log-probabilities which labels are drawn by, but for the factor `sharpness`."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(n, n_classes, generator=generator) * 2
    labels = torch.multinomial(truth.softmax(-1), 1, generator=generator)[:, 0]
    return truth * sharpness, labels


def plain_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_probabilities -= logits.max(-1, keepdims=True)
    return float(-(targets * log_probabilities).sum(-1).mean())


def test_the_temperature_is_that_of_the_least_cross_entropy_and_undoes_a_factor():
    logits, labels = drawn(2000, sharpness=3.0)
    found, truth = temperature(logits, labels), np.eye(4)[labels]
    by_one = {one: plain_cross_entropy(logits.numpy() / one, truth) for one in SOFTENING}
    first = next(one for one, value in by_one.items() if value <= min(by_one.values()) + SCORE)
    assert found == first == pytest.approx(3.0, rel=0.1)
    assert cross_entropy(logits, labels) == pytest.approx(by_one[1.0])


@pytest.mark.parametrize("sharpness", [0.1, 0.5, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_a_temperature_never_sharpens_and_leaves_every_image_its_class(n, sharpness):
    for seed in range(4):
        logits, labels = drawn(n, sharpness, seed)
        found = temperature(logits, labels)
        assert 1 <= found <= 8
        assert (logits / found).argmax(-1).equal(logits.argmax(-1))


def test_where_validation_does_not_ask_for_one_it_is_1():
    assert temperature(*drawn(500, sharpness=1.0)) == 1
    assert temperature(*drawn(500, sharpness=0.3)) == 1  # would be better sharpened
    certain = torch.eye(4).repeat(8, 1) * 50
    assert temperature(certain, torch.arange(4).repeat(8)) == 1  # all right: endless confidence is right
    assert temperature(torch.empty(0, 4), torch.empty(0, dtype=torch.long)) == 1
    wrong_once = torch.tensor([[9.0, 0.0]])
    assert temperature(wrong_once, torch.tensor([1])) > 1


def test_calibration_error_on_other_images_falls_where_logits_are_too_sharp():
    logits, labels = drawn(200, sharpness=3.0)
    others, truth = drawn(4000, sharpness=3.0, seed=1)
    before, after = (expected_calibration_error((others / one).softmax(-1), truth)
                     for one in (1.0, temperature(logits, labels)))  # fmt: skip
    assert before > 0.1 and after < before / 3


def smoothed(logits: Tensor, labels: Tensor) -> float:
    """By the definition: targets with a share for everybody, at the best of the scales."""
    n, n_classes = logits.shape
    share = 1 / (n + 1)
    targets = (1 - share) * np.eye(n_classes)[labels] + share / n_classes
    return min(plain_cross_entropy(logits.double().numpy() / one, targets) for one in SCALES)


def test_losses_are_compared_at_the_best_scale_with_a_share_for_all_classes():
    logits, labels = drawn(20, sharpness=1.0)
    assert loss(logits, labels) == pytest.approx(smoothed(logits, labels), abs=1e-9)
    assert loss(2 * logits, labels) == pytest.approx(loss(logits, labels), abs=1e-9)  # the scale says nothing
    assert loss(torch.eye(4) * 1000, torch.arange(4)) > 0.3  # nor does endless confidence


def test_a_fusion_is_the_first_of_those_with_the_least_loss():
    truth, labels = drawn(80, sharpness=1.0)
    noise = torch.randn(2, 80, 4, generator=torch.Generator().manual_seed(1))
    own, head = truth / 2 + noise[0], 4 * truth + 4 * noise[1]
    found = [smoothed(weight * own + head, labels) for weight in OWN_WEIGHTS]
    first = next(weight for weight, value in zip(OWN_WEIGHTS, found, strict=True) if value <= min(found) + SCORE)
    assert first > 0 and fusion(own, head, labels) == Fusion(first, 1.0)
    assert fusion(1000 * noise[0], head, labels) == Fusion(0.0, 1.0)  # own logits that know nothing


@pytest.mark.parametrize("n", [5, 20, 80])
def test_a_head_that_knows_nothing_is_left_out(n):
    for seed in range(5):
        own, labels = drawn(n, sharpness=1.0, seed=seed)
        noise = 3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(100 + seed))
        assert fusion(own, noise, labels) == Fusion(1.0, 0.0)
        assert fusion(own, own.clone(), labels) == Fusion(1.0, 0.0)  # nor does one that says the same help


def test_without_an_image_the_adapter_is_left_alone():
    nothing = torch.empty(0, 3)
    assert fusion(nothing, nothing, torch.empty(0, dtype=torch.long)) == Fusion(1.0, 0.0)


def test_what_is_no_number_decides_nothing():
    broken, labels = torch.full((6, 3), float("nan")), torch.arange(3).repeat(2)
    assert temperature(broken, labels) == 1
    assert fusion(broken, torch.eye(3).repeat(2, 1), labels) == Fusion(1.0, 0.0)


def test_help_is_more_than_the_standard_error_of_the_mean_difference():
    before = torch.tensor([1.0, 1.0, 1.0, 1.0])
    gain = torch.tensor([0.3, -0.1, 0.3, -0.1])  # mean 0.1, standard error 0.115
    assert not helps(before, before - gain) and helps(before, before - gain - 0.05)
    assert not helps(before[:1], before[:1] - SCORE) and helps(before[:1], before[:1] - 0.01)
