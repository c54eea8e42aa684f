"""Pareto front, comparisons and the race, on numbers that can be checked by hand or simulated."""

import random

import numpy as np
import pytest

from mmrl_core.search.comparison import LEVEL, comparisons, looks, overall, pareto_front, still_in


def trial(cost: int, *likelihoods: float) -> dict:
    scores = [{"log_likelihood": value, "harmonic_mean": 0.5, "cost": cost, "losses": [1.0]} for value in likelihoods]
    return {"params": {"cost": cost}, **overall(scores), "scores": scores}


def test_the_front_holds_what_nothing_beats_in_both():
    trials = [trial(3, -1.0, -1.0), trial(1, -2.0, -2.0), trial(2, -2.5, -2.5), trial(4, -1.5, -1.5), trial(0, -0.1)]
    assert pareto_front(trials, "log_likelihood", "cost") == [1, 0]  # the last was stopped early


def test_the_chosen_is_compared_in_pairs_with_the_published_and_with_the_best_other():
    trials = [trial(1, -2.0, -3.0), trial(2, -1.0, -1.0), trial(3, -1.5, -1.25), trial(4, -0.5)]
    found = comparisons(trials, trials[1], "log_likelihood", {"cost": 1})
    assert found["published"] == {"trial": 0, "difference": 1.5, "se": 0.5}
    assert found["runner_up"] == {"trial": 2, "difference": 0.375, "se": 0.125}
    assert comparisons(trials[1:2], trials[1], "log_likelihood", {}) == {"published": None, "runner_up": None}


def test_a_trial_that_failed_late_is_not_on_the_front_though_it_got_furthest():
    late = {**trial(1, -0.1, -0.1), "state": "failed"}
    assert pareto_front([late, trial(2, -1.0)], "log_likelihood", "cost") == [1]


def likelihoods(trials: list[dict]) -> list[list[float]]:
    return [[one["log_likelihood"] for one in trial["scores"]] for trial in trials]


@pytest.mark.parametrize(
    ("partitions", "expected"), [(1, [1]), (2, [2]), (3, [2, 3]), (6, [2, 4, 6]), (9, [2, 4, 8, 9])]
)
def test_a_race_looks_after_two_partitions_and_after_twice_as_many_each_time(partitions, expected):
    assert looks(partitions) == expected


def test_a_race_ends_what_is_clearly_behind_in_pairs_and_lets_what_may_be_better_go_on():
    trials = [trial(1, -1.0, -9.0), trial(2, -1.1, -8.9), trial(3, -1.5, -9.6), trial(4, -0.8, -9.3)]
    assert likelihoods(still_in(trials, "log_likelihood")) == [[-1.0, -9.0], [-1.1, -8.9], [-0.8, -9.3]]


def test_trials_that_are_equal_or_alone_or_saw_one_partition_all_go_on():
    equal = [trial(cost, -1.0, -2.0) for cost in range(3)]
    assert still_in(equal, "log_likelihood") == equal
    assert still_in(equal[:1], "log_likelihood") == equal[:1]
    single = [trial(1, -1.0), trial(2, -9.0)]
    assert still_in(single, "log_likelihood") == single


def race(deficits: list[float], rng: random.Random, partitions: int = 6) -> list[int]:
    """How many partitions each trial of a race sees: scores are a partition's difficulty, a deficit and noise of 1."""
    difficulty = [rng.gauss(0, 10) for _ in range(partitions)]
    scores = [[hard - deficit + rng.gauss(0, 1) for hard in difficulty] for deficit in deficits]
    going, seen = list(range(len(deficits))), {}
    for look in looks(partitions):
        seen |= dict.fromkeys(going, look)
        kept = likelihoods(still_in([trial(index, *scores[index][:look]) for index in going], "log_likelihood"))
        going = [index for index in going if scores[index][:look] in kept]
    return [seen[index] for index in range(len(deficits))]


def test_of_two_equal_trials_a_look_ends_one_as_often_as_the_level_says():
    """Each look may end either of the two by chance: twice LEVEL for both together, at each of the two looks."""
    rng = random.Random(0)
    ended = [min(race([0.0, 0.0], rng)) for _ in range(1500)]
    assert abs(ended.count(2) / 1500 - 2 * LEVEL) < 0.04  # three standard errors of 1500 races
    assert sum(seen < 6 for seen in ended) / 1500 < 1 - (1 - 2 * LEVEL) ** 2 + 0.04


def test_a_trial_far_behind_is_ended_after_two_partitions_and_the_best_sees_all():
    rng = random.Random(1)
    seen = [race([0.0, *[6.0] * 7], rng) for _ in range(100)]
    assert all(one[0] == 6 for one in seen)
    assert sum(count == 2 for one in seen for count in one[1:]) / (7 * 100) > 0.9


def rounded_otherwise(trials: list[dict], rng: random.Random) -> list[dict]:
    """The same trials on another machine: every likelihood one last bit up, down or the same."""
    values = [[rng.choice((one, np.nextafter(one, 0), np.nextafter(one, -9))) for one in own]
              for own in likelihoods(trials)]  # fmt: skip
    return [trial(old["params"]["cost"], *map(float, own)) for old, own in zip(trials, values, strict=True)]


def decisions(trials: list[dict]) -> dict:
    """All that is decided about the trials, by their places."""
    return {
        "front": pareto_front(trials, "log_likelihood", "cost"),
        "still in": [trials.index(one) for one in still_in(trials, "log_likelihood")],
        "runner-up": comparisons(trials, trials[1], "log_likelihood", {})["runner_up"]["trial"],
    }


def test_no_decision_hangs_on_the_last_bits_of_scores():
    """Among equals, among such as are behind by the standard error itself, and among two."""
    equals = [trial(cost, -0.1, -0.7, -0.3) for cost in (3, 7, 1)]
    one_error_behind = [trial(1, -0.1, -0.7), trial(7, -0.1, -0.9), trial(2, -0.5, -0.9)]
    pair = [trial(2, -0.1, -0.7, -0.3), trial(7, -0.1, -0.7, -0.3)]
    rng = random.Random(0)
    for trials in (equals, one_error_behind, pair):
        expected = decisions(trials)
        assert all(decisions(rounded_otherwise(trials, rng)) == expected for _ in range(30))
    assert decisions(equals) == {"front": [2], "still in": [0, 1, 2], "runner-up": 0}
