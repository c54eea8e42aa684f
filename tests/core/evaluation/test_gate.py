import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mmrl_core.evaluation.gate import (
    NO_IMAGE,
    Bounds,
    Pair,
    decide,
    decide_first,
    discordant,
    gain_bounds,
    is_gate_image,
    latency_ratio,
    loss_bound,
)


def pair(both: int, challenger: int, champion: int, neither: int = 0) -> Pair:
    """Outcomes with so many images right by both, by one alone, by none."""
    counts = [both, challenger, champion, neither]
    return Pair(np.repeat([True, False, True, False], counts), np.repeat([True, True, False, False], counts))


def verdict(base: Pair, novel: Pair, latency_ratio: float = 1.0, **bounds) -> str:
    return decide({"base": base, "novel": novel}, latency_ratio, Bounds(**bounds)).verdict


CLEAR_WIN, NO_CHANGE = pair(70, 20, 2, 8), pair(95, 1, 1, 3)


def test_a_clear_win_that_costs_nothing_is_accepted_with_its_figures():
    decision = decide({"base": CLEAR_WIN, "novel": NO_CHANGE}, 1.0)
    assert decision.accepted and len(decision.reasons) == 4
    figures = decision.figures
    assert (figures["n"], figures["only_challenger"], figures["only_champion"]) == (200, 21, 3)
    assert figures["p_better"] == pytest.approx(binomtest(21, 24, 0.5, alternative="greater").pvalue)
    assert figures["champion"] == pytest.approx(2 * 0.72 * 0.96 / (0.72 + 0.96))


@pytest.mark.parametrize(
    ("case", "expected", "reason"),
    [
        ({"base": pair(70, 2, 20, 8), "novel": NO_CHANGE}, "refused", "worse: of 200 images 3 only by the challenger"),
        ({"base": pair(90, 3, 1, 6), "novel": NO_CHANGE}, "inconclusive", "too few to tell"),
        ({"base": CLEAR_WIN, "novel": pair(80, 1, 16, 3)}, "refused", "falls by 15.00%"),
        ({"base": CLEAR_WIN, "novel": pair(10, 0, 0)}, "inconclusive", "on 10 novel images"),
        ({"base": CLEAR_WIN, "novel": pair(0, 0, 0)}, "inconclusive", "no novel image"),
        ({"all": pair(0, 0, 0)}, "inconclusive", "no image for the gate"),
        ({"all": CLEAR_WIN}, "accepted", "accuracy 90.00% is at least the champion's 72.00%"),
    ],
)
def test_what_is_not_clearly_better_is_refused_and_says_why(case, expected, reason):
    decision = decide(case, 1.0)
    assert decision.verdict == expected and reason in " ".join(decision.reasons)


def test_margin_and_latency_are_bounds_of_their_own():
    assert verdict(CLEAR_WIN, NO_CHANGE, margin=0.05) == "accepted"
    assert verdict(CLEAR_WIN, NO_CHANGE, margin=0.2) == "refused"
    assert verdict(CLEAR_WIN, NO_CHANGE, latency_ratio=2.1) == "refused"
    assert verdict(CLEAR_WIN, NO_CHANGE, latency_ratio=2.1, latency=2.5) == "accepted"


def test_what_else_the_machine_does_makes_no_challenger_slow():
    seconds = np.full((5, 8, 2), 0.01)
    seconds[1:, :, 1] = 0.03  # the other process had the core while the challenger answered, in all rounds but one
    assert latency_ratio(seconds) == pytest.approx(1.0)
    assert latency_ratio(seconds * [1.0, 2.0]) == pytest.approx(2.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_nobody_beats_their_equal_or_both_of_two(outcomes):
    champion, challenger = np.array(outcomes).T
    one, other = decide({"all": Pair(champion, challenger)}, 1.0), decide({"all": Pair(challenger, champion)}, 1.0)
    assert not (one.accepted and other.accepted)
    assert not decide({"all": Pair(champion, champion)}, 1.0).accepted
    b, c = discordant(Pair(champion, challenger))
    assert b + c == int(np.sum(champion != challenger))


def test_equals_are_promoted_no_more_often_than_the_significance_says():
    rng, accepted = np.random.default_rng(0), 0
    for _ in range(400):
        champion, challenger = rng.random((2, 200)) < 0.8
        accepted += decide({"all": Pair(champion, challenger)}, 1.0).accepted
    assert accepted / 400 <= 0.05 + 0.02


def test_the_loss_bound_covers_the_true_loss_as_often_as_it_says():
    rng, covered, true_loss = np.random.default_rng(1), 0, 0.05
    for _ in range(1000):
        draw = rng.random(100)
        champion, challenger = draw < 0.8, (draw < 0.7) | ((draw > 0.8) & (draw < 0.85))
        covered += loss_bound(Pair(champion, challenger), 0.05)[1] >= true_loss
    assert covered / 1000 > 0.93


@pytest.mark.parametrize(
    ("case", "expected", "reason"),
    [
        ({"base": CLEAR_WIN, "novel": NO_CHANGE}, "accepted", "harmonic mean 92.90%, zero-shot's 82.29%: +10.62% ["),
        ({"base": NO_CHANGE, "novel": NO_CHANGE}, "inconclusive", "2 only by zero-shot (McNemar p = 0.69)"),
        ({"base": pair(90, 3, 1, 6), "novel": pair(10, 0, 0)}, "inconclusive", "on 10 novel images"),
        ({"base": pair(70, 2, 20, 8), "novel": NO_CHANGE}, "refused", "worse: of 200 images 3 only by the challenger"),
        ({"base": pair(300, 40, 0, 60), "novel": pair(80, 1, 16, 3)}, "refused", "falls by 15.00%, at least 8."),
        ({"base": pair(900, 16, 0), "novel": pair(40, 0, 6)}, "refused", "%: -"),  # more images, a lower harmonic mean
        ({"all": CLEAR_WIN}, "accepted", "accuracy 90.00%, zero-shot's 72.00%: +18.00% ["),
        ({"base": CLEAR_WIN, "novel": pair(0, 0, 0)}, "accepted", "accuracy 90.00%"),
        ({"base": pair(0, 0, 0), "novel": NO_CHANGE}, "inconclusive", "accuracy 96.00%"),
        ({"base": pair(0, 0, 0), "novel": pair(0, 0, 0)}, "inconclusive", NO_IMAGE),
    ],
)
def test_a_first_version_is_declined_only_where_something_speaks_against_it(case, expected, reason):
    decision = decide_first(case, latency_ratio=9.0)
    assert decision.verdict == expected and reason in " ".join(decision.reasons)


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_handful_of_images_declines_no_first_version(lost):
    for half in (pair(0, 0, 0), pair(5, 0, 0)):
        for parts in ({"base": half, "novel": pair(0, 0, lost)}, {"base": pair(0, 0, lost), "novel": half}):
            assert decide_first(parts, 1.0).verdict == "inconclusive"


def test_a_first_version_that_is_as_good_as_zero_shot_is_seldom_declined():
    rng, declined = np.random.default_rng(2), 0
    for _ in range(200):
        parts = {part: Pair(*(rng.random((2, 100)) < 0.8)) for part in ("base", "novel")}
        declined += decide_first(parts, 1.0).verdict == "refused"
    assert declined / 200 <= 0.1  # three findings, each with its 5%


def test_the_bounds_of_a_gain_cover_the_true_one_as_often_as_they_say():
    rng, below, above = np.random.default_rng(3), 0, 0
    true = 2 * 0.9 * 0.6 / 1.5 - 2 * 0.8 * 0.7 / 1.5
    for _ in range(1000):
        base, novel = rng.random(80), rng.random(120)
        parts = {"base": Pair(base < 0.8, base < 0.9), "novel": Pair(novel < 0.7, novel < 0.6)}
        _, low, high = gain_bounds(parts, 0.05)
        below, above = below + (low <= true), above + (true <= high)
    assert min(below, above) / 1000 > 0.93


def test_half_of_the_validation_images_are_the_gates_wherever_the_data_lies():
    kept = [is_gate_image(f"class_{i % 7}/image_{i:04}.png") for i in range(2000)]
    assert 0.45 < np.mean(kept) < 0.55
    assert is_gate_image("three/0012.png") == is_gate_image("three/0012.png")


@pytest.mark.parametrize(
    ("case", "bound", "value", "expected"),
    [
        (pair(90, 4, 0, 6), "significance", 1 / 16, "accepted"),  # four of four: p is exactly a sixteenth
        (pair(90, 0, 4, 6), "significance", 1 / 16, "refused"),
        (pair(70, 20, 2, 8), "margin", 0.18, "accepted"),  # from 72 to 90 of 100
    ],
)
def test_a_figure_that_meets_its_bound_does_so_whatever_the_last_bits(case, bound, value, expected):
    for near in (np.nextafter(value, 0), value, np.nextafter(value, 1)):
        assert decide({"all": case}, 1.0, Bounds(**{bound: float(near)})).verdict == expected


def test_the_bound_on_novel_images_is_met_whatever_the_last_bits():
    _, upper = loss_bound(NO_CHANGE, Bounds().significance)
    for near in (np.nextafter(upper, 0), upper, np.nextafter(upper, 1)):
        assert verdict(CLEAR_WIN, NO_CHANGE, novel_loss=float(near)) == "accepted"
