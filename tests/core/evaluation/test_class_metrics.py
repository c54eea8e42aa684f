"""Metrics by class against values by hand, and against a count of all pairs."""

import numpy as np
import pytest

from tests.core.evaluation.of_probabilities import class_metrics

FOUR = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])  # answers 0, 1, 0, 2


def test_the_metrics_are_those_that_a_hand_counts():
    metrics = class_metrics(FOUR, np.array([0, 0, 1, 2]))
    assert metrics["tested_classes"] == 3
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert metrics["balanced_accuracy"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    # Class 0: of (0.7, 0.3) against (0.5, 0.1) three pairs of four; class 1: 0.3 against (0.2, 0.6, 0.2) two of three.
    assert metrics["auroc"] == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    assert "top5_accuracy" not in metrics


def test_an_average_over_classes_gives_a_rare_class_as_much_weight_as_a_frequent_one():
    sure = np.array([[0.9, 0.1]] * 10)
    metrics = class_metrics(sure, np.array([0] * 9 + [1]))
    assert metrics["balanced_accuracy"] == 0.5  # where the accuracy is 0.9
    assert metrics["macro_f1"] == pytest.approx((2 * 9 / 19 + 0) / 2)
    assert metrics["auroc"] == 0.5  # all equal: the half of every pair


def test_top_5_counts_the_images_whose_class_is_among_the_five_most_probable_of_six_or_more():
    falling = np.tile([0.3, 0.2, 0.15, 0.15, 0.1, 0.06, 0.04], (7, 1))
    assert class_metrics(falling, np.arange(7))["top5_accuracy"] == pytest.approx(5 / 7)
    assert "top5_accuracy" not in class_metrics(falling[:, :5], np.arange(5).repeat(2)[:7])


def test_of_equally_probable_classes_the_first_come_first():
    metrics = class_metrics(np.full((8, 8), 1 / 8), np.arange(8))
    assert metrics["top5_accuracy"] == 5 / 8
    assert metrics["balanced_accuracy"] == 1 / 8
    assert metrics["auroc"] == 0.5


def test_a_class_without_images_is_no_part_of_a_mean_but_of_f1s_where_it_is_answered():
    labels = np.array([0, 0, 1, 1])
    metrics = class_metrics(FOUR, labels)  # answers 0, 1, 0, 2
    assert metrics["tested_classes"] == 2
    assert metrics["balanced_accuracy"] == pytest.approx((1 / 2 + 0) / 2)
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert metrics["auroc"] == pytest.approx((3 / 4 + 3 / 8) / 2)  # of class 1 a pair is won, one is equal
    never = np.hstack([FOUR[:2], np.zeros((2, 9))])  # and nine more that nobody answers
    assert class_metrics(never, labels[:2])["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(("probabilities", "labels", "share"), [
    ([[1.0]] * 3, [0, 0, 0], 1.0), ([[0.2, 0.8]], [0], 0.0), ([[0.2, 0.8]], [1], 1.0),
])  # fmt: skip
def test_images_of_a_single_class_have_no_auroc(probabilities, labels, share):
    metrics = class_metrics(np.array(probabilities), np.array(labels))
    assert metrics == {"tested_classes": 1, "macro_f1": share, "balanced_accuracy": share}


def pairs_won(positive: np.ndarray, scores: np.ndarray) -> float:
    """Mann and Whitney's U by its definition, as a share of all pairs."""
    difference = scores[positive][:, None] - scores[~positive]
    return float(((difference > 0) + (difference == 0) / 2).mean())


@pytest.mark.parametrize(("classes", "images", "levels"), [
    (2, 30, 1000), (3, 12, 4), (5, 40, 1), (7, 60, 3), (9, 12, 1000), (9, 5, 2),
])  # fmt: skip
def test_auroc_is_the_share_of_pairs_that_are_won_ties_and_classes_without_images_among_them(classes, images, levels):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        probabilities = rng.integers(0, levels, (images, classes)).astype(np.float32) / levels
        labels = rng.integers(0, classes, images)
        won = [pairs_won(labels == one, probabilities[:, one]) for one in np.unique(labels)]
        assert class_metrics(probabilities, labels)["auroc"] == pytest.approx(np.mean(won))


def test_rows_of_a_softmax_in_float32_need_not_sum_to_1():
    exact = np.random.default_rng(0).random((40, 7))
    labels = np.arange(40) % 7
    assert class_metrics(exact.astype(np.float32) * np.float32(1.001), labels) == class_metrics(exact, labels)
