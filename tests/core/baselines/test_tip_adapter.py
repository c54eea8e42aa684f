"""Tip-Adapter: the paper's formula, what is chosen by validation, and fine-tuning."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl_core.baselines.labelled import Labelled
from mmrl_core.baselines.tip_adapter import RESIDUAL, RESIDUALS, SHARPNESS, SHARPNESSES, fit_image_cache
from mmrl_core.evaluation.calibration import loss
from mmrl_core.rounding import SCORE

N_CLASSES, WIDTH = 3, 10
NONE = Labelled(torch.empty(0, WIDTH), torch.empty(0, dtype=torch.long))
TEXT = F.normalize(torch.randn(N_CLASSES, WIDTH, generator=torch.Generator().manual_seed(5)), dim=-1)


def drawn(each: int, seed: int = 0, noise: float = 1.0) -> Labelled:
    means = torch.randn(N_CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N_CLASSES).repeat(each)[torch.randperm(each * N_CLASSES, generator=generator)]
    features = means[labels] + noise * torch.randn(len(labels), WIDTH, generator=generator)
    return Labelled(F.normalize(features, dim=-1), labels)


def papers(features: Tensor, train: Labelled, keys: Tensor, beta: float, alpha: float) -> np.ndarray:
    """Equation 5 of the paper, with CLIP's 100: alpha phi(f F^T) L + f W^T, phi(x) = exp(-beta (1 - x))."""
    f, keys, one_hot = features.numpy(), keys.numpy(), np.eye(N_CLASSES)[train.labels.numpy()]
    return alpha * np.exp(-beta * (1 - f @ keys.T)) @ one_hot + 100 * f @ TEXT.numpy().T


def zero_shot(data: Labelled) -> Tensor:
    return 100 * data.features @ TEXT.T


def test_its_logits_are_the_papers_whatever_the_order_of_the_images():
    train, test = drawn(4), drawn(5, seed=2)
    cache, alpha = fit_image_cache(train, drawn(4, seed=1), TEXT, tuned=False, seed=1)
    found = zero_shot(test) + alpha * cache(test.features)
    expected = papers(test.features, train, train.features, cache.sharpness, alpha)
    assert found.numpy() == pytest.approx(expected, abs=1e-3, rel=1e-5)
    assert sorted(map(tuple, cache.keys.tolist())) == sorted(map(tuple, train.features.tolist()))


def test_sharpness_and_weight_are_those_of_the_least_loss_on_validation_images():
    train = drawn(4)
    for seed in (1, 2, 3):
        val = drawn(6, seed=seed, noise=0.5)
        cache, alpha = fit_image_cache(train, val, TEXT, tuned=False, seed=1)
        losses = {}
        for pair in product(RESIDUALS, SHARPNESSES):
            logits = papers(val.features, train, train.features, beta=pair[1], alpha=pair[0])
            losses[pair] = loss(torch.from_numpy(logits), val.labels)
        best = min(losses.values())
        assert (alpha, cache.sharpness) == next(pair for pair, value in losses.items() if value <= best + SCORE)
        assert losses[alpha, cache.sharpness] < loss(zero_shot(val), val.labels)


def test_without_validation_they_are_the_authors_first_ones_and_no_label_is_looked_at():
    train = drawn(4)
    for labels in (train.labels, train.labels.flip(0)):
        cache, alpha = fit_image_cache(Labelled(train.features, labels), NONE, TEXT, tuned=False, seed=1)
        assert (cache.sharpness, alpha) == (SHARPNESS, RESIDUAL)


def training_loss(keys: Tensor, train: Labelled) -> float:
    logits = torch.from_numpy(papers(train.features, train, keys, SHARPNESS, RESIDUAL))
    return float(F.cross_entropy(logits, train.labels))


def test_fine_tuning_lowers_the_training_loss():
    train = drawn(8)
    by_class = Labelled(*[column[torch.argsort(train.labels, stable=True)] for column in train])
    before, _ = fit_image_cache(by_class, NONE, TEXT, tuned=False, seed=1)
    after, _ = fit_image_cache(by_class, NONE, TEXT, tuned=True, seed=1)
    assert before.keys.equal(by_class.features)
    assert training_loss(after.keys, by_class) < training_loss(before.keys, by_class) - 0.01
    assert not after.keys.requires_grad


def test_fine_tuning_is_a_function_of_the_seed_where_images_are_more_than_a_batch():
    train = drawn(100)
    first, again, other = (fit_image_cache(train, NONE, TEXT, tuned=True, seed=seed)[0].keys for seed in (1, 1, 2))
    assert first.equal(again) and not torch.allclose(first, other, atol=1e-5)


def test_a_class_may_have_more_images_than_another_or_none():
    train = Labelled(drawn(2).features[:3], torch.tensor([2, 0, 2]))
    cache, alpha = fit_image_cache(train, NONE, TEXT, tuned=False, seed=1)
    assert cache.values.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    expected = papers(train.features, train, train.features, SHARPNESS, alpha)
    assert (zero_shot(train) + alpha * cache(train.features)).numpy() == pytest.approx(expected, abs=1e-3)
