"""Scores: calibration, summaries, harmonic mean."""

import pytest
import torch

from mmrl_core.evaluation.scores import Scores, batched, merged
from mmrl_core.protocols import harmonic_mean
from tests.core.evaluation.of_probabilities import expected_calibration_error, summary


def test_the_harmonic_mean_is_zero_when_one_side_is():
    assert harmonic_mean(0.8, 0.4) == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert harmonic_mean(0.0, 0.4) == 0
    assert harmonic_mean(0.0, 0.0) == 0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probabilities = torch.tensor([[0.9, 0.1]] * 10)
    right = torch.tensor([0] * 9 + [1])
    assert expected_calibration_error(probabilities, right) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(probabilities, 1 - right) == pytest.approx(0.8, abs=1e-6)


def test_calibration_error_weighs_bins_by_their_images():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 0, 0, 1])
    expected = 1 / 4 * abs(1 - 0.9) + 3 / 4 * abs(2 / 3 - 0.6)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_a_summary_counts_what_the_most_probable_class_gets_right():
    probabilities = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    result = summary(probabilities, torch.tensor([0, 1, 1]))
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["n"] == 3
    assert result["nll"] == pytest.approx(-torch.tensor([0.7, 0.8, 0.4]).log().mean().item(), abs=1e-6)


def test_batches_keep_order_and_the_short_rest():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]


def scores_of(*items):
    rows = torch.arange(len(items)).double()
    return Scores(list(items), rows.long(), torch.stack([rows, 1 - rows], 1), torch.stack([-rows, rows], 1), [4, 7])


def test_merged_scores_hold_the_images_of_one_part_after_those_of_the_other():
    first, second = scores_of("a", "b"), scores_of("c")
    both = merged(iter([first, second]), [4, 7])
    assert (both.items, both.classes) == (["a", "b", "c"], [4, 7])
    for column in ("labels", "adapted", "zero_shot"):
        assert getattr(both, column).equal(torch.cat([getattr(first, column), getattr(second, column)]))


def test_scores_merged_of_nothing_have_no_image_and_a_column_a_class():
    empty = merged([], [4, 7, 9])
    assert (empty.items, empty.classes, empty.labels.dtype) == ([], [4, 7, 9], torch.long)
    assert empty.labels.shape == (0,) and empty.adapted.shape == empty.zero_shot.shape == (0, 3)
