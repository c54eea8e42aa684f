"""Figures that differ by rounding are equal, whichever way they were rounded."""

import numpy as np
import pytest

from mmrl_core.rounding import SCORE, at_most, first_of_best


@pytest.mark.parametrize("bound", [1e-12, 0.05, 1.0, 3e5])
def test_a_bound_is_kept_by_what_is_it_but_for_the_last_bit(bound):
    for value in (np.nextafter(bound, 0), bound, np.nextafter(bound, 1e9)):
        assert at_most(value, bound) and at_most(bound, value)
    assert not at_most(1.001 * bound, bound) and at_most(0.999 * bound, bound)


def test_of_scores_that_are_as_good_as_the_best_the_first_counts_whatever_their_last_bits():
    scores = {"worse": 0.5, "first": 0.9, "second": 0.9, "nearly": 0.9 - SCORE / 2}
    for up in scores:
        assert first_of_best(scores, lambda name, up=up: np.nextafter(scores[name], 1 if name == up else 0)) == "first"
    assert first_of_best(scores, scores.get, within=0) == "first"
    assert first_of_best(reversed(scores), scores.get) == "nearly"
    assert first_of_best(reversed(scores), scores.get, within=0) == "second"
