"""Bootstrap intervals against what is known of paired differences."""

import numpy as np
import pytest

from mmrl_core.errors import UserError
from mmrl_core.evaluation.bootstrap import Outcomes, paired_differences, paired_gains


def outcomes(adapted, zero_shot) -> Outcomes:
    return Outcomes([f"{i}.png" for i in range(len(adapted))], np.array(adapted, bool), np.array(zero_shot, bool))


def drawn(rng, n: int, adapted: float, zero_shot: float) -> Outcomes:
    return outcomes(rng.random(n) < adapted, rng.random(n) < zero_shot)


def test_equal_predictions_gain_nothing_for_certain():
    half = outcomes([1, 0, 1, 1], [1, 0, 1, 1])
    assert set(paired_gains([{"base": half, "novel": half}])["harmonic_mean"].values()) == {0.0}


def test_the_gain_is_the_difference_of_the_seed_means_and_of_their_harmonic_means():
    first = {"base": outcomes([1, 1, 1, 1], [1, 1, 0, 0]), "novel": outcomes([1, 0, 0, 0], [1, 1, 0, 0])}
    second = {"base": outcomes([1, 1, 1, 0], [1, 1, 0, 0]), "novel": outcomes([1, 1, 0, 0], [1, 1, 0, 0])}
    gains = paired_gains([first, second])
    assert gains["base"]["mean"] == pytest.approx(0.875 - 0.5)
    assert gains["novel"]["mean"] == pytest.approx(0.375 - 0.5)
    assert gains["harmonic_mean"]["mean"] == pytest.approx(2 * 0.875 * 0.375 / 1.25 - 0.5)


def test_the_interval_is_that_of_a_paired_difference_in_a_large_sample():
    rng, n = np.random.default_rng(1), 4000
    zero_shot = rng.random(n) < 0.7
    adapted = zero_shot ^ (rng.random(n) < 0.1)  # they differ on a tenth of the images: far from independent
    half = outcomes(adapted, zero_shot)
    gain = paired_gains([{"base": half, "novel": half}])["base"]
    difference = adapted.astype(float) - zero_shot
    width = 2 * 1.96 * difference.std() / n**0.5
    assert gain["high"] - gain["low"] == pytest.approx(width, rel=0.1)
    assert (gain["high"] + gain["low"]) / 2 == pytest.approx(difference.mean(), abs=width / 10)


def test_intervals_hold_the_true_gain_about_as_often_as_they_say():
    rng, held = np.random.default_rng(2), 0
    for _ in range(200):
        run = {"base": drawn(rng, 150, 0.8, 0.7), "novel": drawn(rng, 150, 0.6, 0.65)}
        gain = paired_gains([run], replicates=300)["harmonic_mean"]
        held += gain["low"] <= 2 * 0.8 * 0.6 / 1.4 - 2 * 0.7 * 0.65 / 1.35 <= gain["high"]
    assert 0.89 < held / 200 < 0.99


def test_seeds_that_disagree_widen_the_interval():
    n = 1000
    zero_shot = np.arange(n) % 2 == 0
    alike = [outcomes(np.arange(n) % 10 < 7, zero_shot)] * 2
    apart = [outcomes(np.arange(n) % 10 < 9, zero_shot), outcomes(np.arange(n) % 10 < 5, zero_shot)]
    widths = []
    for runs in (alike, apart):
        gain = paired_gains([{"base": one, "novel": one} for one in runs])["base"]
        widths.append(gain["high"] - gain["low"])
        assert gain["mean"] == pytest.approx(0.2)
    assert widths[1] > 3 * widths[0]


def test_runs_on_other_images_are_refused():
    half, other = outcomes([1, 0], [1, 1]), Outcomes(["1.png", "0.png"], np.ones(2, bool), np.ones(2, bool))
    with pytest.raises(UserError, match="tested on different images; run `mmrl evaluate`"):
        paired_gains([{"base": half, "novel": half}, {"base": other, "novel": half}])


def test_the_same_runs_give_the_same_interval():
    rng = np.random.default_rng(3)
    runs = [{"base": drawn(rng, 50, 0.8, 0.7), "novel": drawn(rng, 60, 0.6, 0.65)} for _ in range(3)]
    assert paired_gains(runs) == paired_gains(runs)


def test_a_difference_from_zero_shot_is_the_gain_over_it():
    rng = np.random.default_rng(4)
    runs = [{"base": drawn(rng, 50, 0.8, 0.7), "novel": drawn(rng, 60, 0.6, 0.65)} for _ in range(3)]
    zero_shots = [{part: outcomes(one.zero_shot, one.adapted) for part, one in run.items()} for run in runs]
    assert paired_differences(runs, zero_shots) == paired_gains(runs)


def test_a_difference_between_methods_is_that_of_their_means_and_narrow_where_they_err_alike():
    rng, n = np.random.default_rng(5), 4000
    one, other, by_itself = [], [], []
    for _ in range(2):
        right = rng.random(n) < 0.7
        one.append({"all": outcomes(right ^ (rng.random(n) < 0.05), right)})
        other.append({"all": outcomes(right, right)})
        by_itself.append({"all": outcomes(rng.random(n) < 0.7, right)})
    found = paired_differences(one, other)["all"]
    plain = np.mean([run["all"].adapted.mean() for run in one]) - np.mean([run["all"].adapted.mean() for run in other])
    assert found["mean"] == pytest.approx(plain)
    apart = paired_differences(one, by_itself)["all"]
    assert found["high"] - found["low"] < (apart["high"] - apart["low"]) / 2
    assert paired_differences(other, one)["all"]["mean"] == pytest.approx(-plain)


@pytest.mark.parametrize("other", [
    {"base": Outcomes(["1.png", "0.png"], np.ones(2, bool), np.ones(2, bool))},
    {"all": outcomes([1, 0], [1, 1])},
])  # fmt: skip
def test_methods_on_other_images_or_parts_are_not_compared(other):
    with pytest.raises(UserError, match="tested on different images"):
        paired_differences([{"base": outcomes([1, 0], [1, 1])}], [other])
