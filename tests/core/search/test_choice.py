"""Which trial is chosen: the rule on trials made by hand, and that no choice hangs on the last bits of scores."""

import random

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from mmrl_core.rounding import SCORE
from mmrl_core.search.choice import LENGTH, choose, smoothed
from mmrl_core.search.comparison import overall
from mmrl_core.search.trial import Trial

SPACE = {"adapter.reg_weight": {"loguniform": [0.1, 30.0]}}
BOTH = {**SPACE, "train.lr": {"choice": [1e-3, 2e-3, 4e-3]}}
DEPTH = {"adapter.insertion_depth": {"choice": [3, 4, 5, 6]}}


def trial(params: float | dict, *likelihoods: float, harmonic: float = 0.5, **entries) -> Trial:
    """Of these settings, or of this weight."""
    params = params if isinstance(params, dict) else {"adapter.reg_weight": params}
    scores = [{"log_likelihood": value, "harmonic_mean": harmonic} for value in likelihoods]
    return {"params": params, **(overall(scores) if scores else {}), "scores": scores, **entries}


def both(weight: float, lr: float, *likelihoods: float) -> Trial:
    return trial({"adapter.reg_weight": weight, "train.lr": lr}, *likelihoods)


def chosen(trials: list[Trial], published: dict | None = None, space=SPACE, objective="log_likelihood") -> int | None:
    """The place of the choice."""
    found = choose(trials, objective, published or {}, space)
    return None if found is None else next(place for place, one in enumerate(trials) if one is found)


def test_a_clear_winner_is_chosen_whatever_changes_the_model_less():
    trials = [trial(20.0, -2, -2, -2.1), trial(0.5, -1, -1.1, -1)]
    assert chosen(trials, {"adapter.reg_weight": 20.0}) == 1


def test_partitions_that_differ_much_but_alike_for_both_make_no_tie():
    assert chosen([trial(20.0, -1.1, -9.1, -5.12), trial(0.5, -1.0, -9.0, -5.0)]) == 1


def test_of_what_cannot_be_told_from_the_best_the_most_regularised_is_taken():
    trials = [trial(0.5, -1.0, -1.2, -1.0), trial(3.0, -1.1, -0.9, -1.1), trial(9.0, -1.0, -1.1, -1.1)]
    assert chosen(trials, {"adapter.reg_weight": 0.5}) == 2


def test_of_equal_regularisation_the_smaller_rate_is_taken():
    trials = [both(3.0, 4e-3, -1.0, -1.1, -1.0), both(3.0, 1e-3, -1.1, -1.0, -1.0), both(1.0, 2e-3, -1.1, -1.1, -1.0)]
    assert chosen(trials, {"train.lr": 4e-3}, BOTH) == 1


def test_where_neither_is_searched_the_published_is_taken_and_without_it_the_first():
    trials = [trial({"adapter.insertion_depth": depth}, -1.0, -1.1, -1.0) for depth in (4, 6, 5)]
    assert chosen(trials, {"adapter.insertion_depth": 5}, DEPTH) == 2
    assert chosen(trials, {}, DEPTH) == chosen(trials, {"adapter.insertion_depth": 3}, DEPTH) == 0


def test_trials_that_differ_by_no_more_than_a_thousandth_are_tied_though_none_ever_varies():
    trials = [trial(0.5, -1.0, -1.0, -1.0), trial(9.0, -1.0005, -1.0005, -1.0005)]
    assert chosen(trials) == 1
    assert chosen([trials[0], trial(9.0, -1.02, -1.02, -1.02)]) == 0


def test_one_trial_is_the_choice_and_without_one_there_is_none():
    assert chosen([trial(0.5, -1.0, -2.0)]) == chosen([trial(0.5, -1.0)]) == 0
    assert chosen([]) is None and chosen([trial(0.5)]) is None


def test_a_trial_that_was_ended_early_failed_or_was_lost_is_not_chosen():
    early, whole = trial(20.0, -0.1), trial(0.5, -2, -2)
    assert chosen([early, whole]) == 1
    for state in ("failed", "lost"):
        late = trial(20.0, -0.1, -0.1, state=state)
        assert chosen([late, whole]) == 1 and chosen([late]) is None


def test_of_one_partition_each_the_best_is_chosen_but_for_rounding():
    trials = [trial(20.0, -2.0), trial(9.0, -1.0), trial(0.5, -1.0)]
    assert chosen(trials) == 1


def test_a_protocol_that_divides_nothing_has_a_partition_a_seed_and_a_choice():
    trials = [trial(0.1, -0.30, -0.31, -0.29), trial(1.0, -0.22, -0.20, -0.21), trial(30.0, -0.9, -0.8, -0.85)]
    assert chosen(trials) == 1


def test_the_harmonic_mean_may_be_the_objective():
    trials = [trial(20.0, -1, -1, -1, harmonic=0.5), trial(0.5, -2, -2, -2, harmonic=0.7)]
    assert chosen(trials, objective="harmonic_mean") == 1 and chosen(trials) == 0


def lucky(place: float) -> list[Trial]:
    """Good ones at weights about 0.2, bad ones about 20, and one there whose mean is the best of all."""
    draw = random.Random(0)
    good = [trial(weight, *(-0.9 + draw.gauss(0, 0.05) for _ in range(6))) for weight in (0.15, 0.2, 0.25, 0.3, 0.4)]
    bad = [trial(weight, *(-1.1 + draw.gauss(0, 0.05) for _ in range(6))) for weight in (14, 16, 24, 28)]
    return [*good, trial(place, *(-0.86 + draw.gauss(0, 0.05) for _ in range(6))), *bad]


def test_a_lucky_lone_trial_among_bad_neighbours_is_not_taken():
    trials = lucky(20.0)
    best = max(trials, key=lambda one: one["log_likelihood"])
    assert best is trials[5] and chosen(trials) == 4
    alone = [one for one in trials if one["params"]["adapter.reg_weight"] < 1 or one is best]
    assert chosen(alone) == 5  # without neighbours nothing speaks against it


def plain(trials: list[Trial], places: list[list[float]]) -> np.ndarray:
    """The posterior mean by scikit-learn, of trials that all saw every partition."""
    scores = np.array([[one["log_likelihood"] for one in own["scores"]] for own in trials])
    relative = scores - scores.mean(0)
    means, n = relative.mean(1), scores.shape[1]
    noise = max(float(np.median(relative.var(1, ddof=1))), SCORE**2) / n
    spread = max(means.var() - noise, noise / len(trials))
    process = GaussianProcessRegressor(ConstantKernel(spread) * RBF(LENGTH), alpha=noise, optimizer=None)
    level = means.mean()
    return level + process.fit(np.array(places), means - level).predict(np.array(places))


def test_the_smoothed_objective_is_the_posterior_mean_of_scikit_learns_gaussian_process():
    draw = random.Random(3)
    grid = [(w, lr) for w in (0.1, 3**0.5, 30.0) for lr in (1e-3, 2e-3, 4e-3)]
    trials = [both(w, lr, *(draw.gauss(-w / 30, 0.2) for _ in range(4))) for w, lr in grid]
    places = [[x, y] for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)]
    assert smoothed(trials, "log_likelihood", BOTH) == pytest.approx(plain(trials, places), abs=1e-9)


def test_a_place_in_the_space_is_the_same_whatever_its_dimension_is_called():
    """Halfway between two bounds, in the logarithm, and in a list."""
    kinds = [
        ({"uniform": [0.0, 8.0]}, [0.0, 4.0, 8.0]),
        ({"loguniform": [1.0, 100.0]}, [1.0, 10.0, 100.0]),
        ({"choice": [7, 1, 2]}, [1, 2, 7]),
    ]
    found = []
    for kind, values in kinds:
        scores = zip(values, ((-1.0, -1.2), (-0.8, -0.9), (-1.4, -1.3)), strict=True)
        trials = [trial({"adapter.alpha": value}, *own) for value, own in scores]
        found.append(smoothed(trials, "log_likelihood", {"adapter.alpha": kind}))
    assert found[0] == pytest.approx(found[1], abs=1e-12) and found[0] == pytest.approx(found[2], abs=1e-12)
    only = [trial({"adapter.alpha": 3}, -1.0, -1.1), trial({"adapter.alpha": 3}, -1.1, -1.2)]
    assert chosen(only, space={"adapter.alpha": {"choice": [3]}}) == 0


def test_a_trial_that_was_ended_early_counts_where_it_was_and_by_what_it_saw():
    """It is compared on its own partitions, and pulls its neighbours, the less the fewer these are."""
    whole = [trial(0.2, -1.0, -3.0, -1.0, -3.1), trial(10.0, -1.1, -3.1, -1.1, -3.0)]
    beside = {seen: smoothed([*whole, trial(11.0, *[-1.6, -3.6, -1.6, -3.6][:seen])], "log_likelihood", SPACE)
              for seen in (1, 3)}  # fmt: skip
    alone = smoothed(whole, "log_likelihood", SPACE)
    assert beside[3][1] < beside[1][1] < alone[1]
    assert smoothed([*whole, trial(0.3)], "log_likelihood", SPACE) == [*alone, -np.inf]


def search(draw: random.Random) -> list[Trial]:
    """A search as searches are: a dozen settings whose means hardly differ, ended early after 2 or 4 of 6 partitions
    where they are worst."""
    hard, ease = [draw.gauss(-1, 0.3) for _ in range(6)], draw.choice((0.0, 0.05, 0.2))
    trials = []
    for _ in range(12):
        place = draw.random()
        scores = [level - ease * (place - 0.7) ** 2 + draw.gauss(0, 0.03) for level in hard]
        weight, lr = 0.1 * 300**place, draw.choice(BOTH["train.lr"]["choice"])
        trials.append(both(weight, lr, *scores[: draw.choice((2, 4, 6, 6))]))
    return [*trials, both(0.5, 1e-3, *hard)]


def test_the_choice_of_a_search_is_the_same_when_every_score_is_disturbed():
    draw = random.Random(0)
    for _ in range(50):
        trials = search(draw)
        disturbed = [trial(one["params"], *(s["log_likelihood"] + draw.uniform(-1e-5, 1e-5) for s in one["scores"]))
                     for one in trials]  # fmt: skip
        assert chosen(trials, space=BOTH) == chosen(disturbed, space=BOTH)


def test_the_choice_among_equals_does_not_hang_on_last_bits():
    draw, equals = random.Random(0), (-0.1, -0.7, -0.3)
    for trials in ([0.5, 20.0, 3.0], [3.0, 20.0], [20.0]):
        for _ in range(30):
            bits = [[draw.choice((one, np.nextafter(one, 0), np.nextafter(one, -9))) for one in equals] for _ in trials]
            found = chosen([trial(weight, *own) for weight, own in zip(trials, bits, strict=True)])
            assert trials[found] == 20.0
