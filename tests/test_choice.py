"""Pareto front and comparisons on numbers that can be checked by hand."""

from mmrl_core.choice import choose, comparisons, overall, pareto_front


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


def test_a_trial_without_scores_is_no_choice():
    assert choose([{"params": {}, "scores": []}], "log_likelihood", {}) is None


def test_a_trial_that_failed_late_is_no_choice_though_it_got_furthest():
    late = {**trial(1, -0.1, -0.1), "state": "failed"}
    trials = [late, trial(2, -1.0)]
    assert choose(trials, "log_likelihood", {}) is trials[1]
    assert pareto_front(trials, "log_likelihood", "cost") == [1] and choose([late], "log_likelihood", {}) is None
