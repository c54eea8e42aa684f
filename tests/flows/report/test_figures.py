"""The report's figures, from numbers whose picture is known."""

import re

import numpy as np
import pytest
from matplotlib.textpath import TextPath

from flows.report.by_class import KINDS, ClassGain, class_gains, confusion
from flows.report.figures import COLOURS, forest
from flows.report.searches import Search, bins, heat_map, pictures
from flows.report.tables import METHOD_TITLES


def test_the_heat_map_shows_the_objective_that_was_searched_and_takes_a_weight_of_zero():
    trials = [{"params": {"adapter.reg_weight": weight, "adapter.insertion_depth": 3}, "log_likelihood": -1.0,
               "harmonic_mean": 0.5 + weight / 10} for weight in (0.0, 1.0)]  # fmt: skip
    assert ">harmonic mean<" in heat_map("digits", trials, 1, "harmonic_mean")
    assert ">log-likelihood, nats an image<" in heat_map("digits", trials, 1, "log_likelihood")


def test_bins_of_a_heat_map_hold_every_value():
    for values in ([0.5], [0.5, 2], [0, 1, 10], list(np.geomspace(0.1, 30, 24))):
        edges = bins(np.array(values, float))
        assert (np.diff(edges) > 0).all() and edges[0] <= min(values) and max(values) <= edges[-1] * (1 + 1e-12)


def test_a_trial_that_failed_is_in_no_picture():
    trials = [
        {"params": {"adapter.reg_weight": 1.0, "adapter.insertion_depth": 3}, "scores": []},
        {"params": {"adapter.reg_weight": 2.0, "adapter.insertion_depth": 3}, "scores": [{}], "harmonic_mean": 0.5},
    ]
    drawn = pictures(Search("digits", trials, 1, "harmonic_mean", "x.json"))
    assert len(drawn) == 2 and all("<svg" in picture for picture in drawn)


def test_classes_of_one_name_have_a_bar_each():
    gains = [ClassGain(name, gain, "") for name, gain in (("missile", 0.1), ("missile", -0.1), ("hen", 0.2))]
    assert class_gains("imagenet", gains).count(">missile<") == 2


def test_base_and_novel_classes_are_told_apart_where_there_are_both():
    matrix, names, kinds = np.eye(3, dtype=int), ["cat", "dog", "hen"], ["base", "base", "novel"]
    gains = [ClassGain(name, 0.1, kind) for name, kind in zip(names, kinds, strict=True)]
    for drawn in (confusion("pets", matrix, names, kinds), class_gains("pets", gains)):
        colours = {name: re.search(rf"fill: (#\w+)[^>]*>{name}<", drawn)[1] for name in names}
        assert colours == {"cat": KINDS["base"][0], "dog": KINDS["base"][0], "hen": KINDS["novel"][0]}
        assert ">base: trained on<" in drawn and ">novel: not trained on<" in drawn
    assert "trained on" not in confusion("pets", matrix, names, [""] * 3)


def gain_row(method: str, dataset: str, **gains: tuple[float, float, float]) -> dict:
    row = {"source": dataset, "target": dataset, "method": method, "accuracy": {"all": {"mean": 0.5, "std": 0.0}}}
    bounds = {part: dict(zip(("mean", "low", "high"), gain, strict=True)) for part, gain in gains.items()}
    return {**row, "gain": bounds} if gains else row


def test_every_method_of_every_dataset_has_a_row_with_its_interval_and_a_dot_that_says_whether_0_is_in_it():
    methods = list(METHOD_TITLES)[1:]
    rows = [gain_row("zero_shot", name) if method is None else gain_row(method, name, all=(0.02, -0.01, 0.05))
            for name in ("digits", "objects") for method in (None, *methods)]  # fmt: skip
    rows[-1] = gain_row(methods[-1], "objects", all=(0.1, 0.08, 0.12))
    drawn = forest(rows, ["all"])
    for name in methods:
        assert drawn.count(f">{METHOD_TITLES[name]}<") == 2
    assert drawn.count(">+2.0 [-1.0, +5.0]<") == 2 * len(methods) - 1 and drawn.count(">+10.0 [+8.0, +12.0]<") == 1
    assert drawn.count(">zero-shot 50.0<") == 2 and drawn.count(">digits<") == drawn.count(">objects<") == 1
    open_dots = drawn.count('style="fill: #ffffff; stroke: ')
    assert open_dots == 2 * len(methods) - 1, open_dots
    assert len({COLOURS[name] for name in METHOD_TITLES}) == len(METHOD_TITLES)


@pytest.mark.parametrize("names", [["digits"], [f"dataset-{number}" for number in range(11)]])
def test_gains_of_one_dataset_and_of_eleven_lie_in_the_picture_and_not_on_one_another(names):
    pairs = [(gain_row("zero_shot", name), gain_row("mmrlpp+probe", name, all=(-0.3, -0.512, -0.1))) for name in names]
    drawn = forest([row for pair in pairs for row in pair], ["all"])
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn).groups())
    texts = re.findall(r'text-anchor: (start|end)[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', drawn)
    for anchor in ("start", "end"):
        heights = sorted(float(y) for kind, _, y, _ in texts if kind == anchor)
        assert len(heights) == 2 * len(names) and min(np.diff(heights)) > 12
        assert heights[0] > 0 and heights[-1] < height
    for anchor, x, _, text in texts:
        across = TextPath((0, 0), text, size=8 if anchor == "start" else 10).get_extents().width
        assert float(x) + across < width if anchor == "start" else float(x) - across > 0, text
