"""Which results agree within noise, and which are not to be compared."""

import re
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest

from flows.report.agreement import LEVEL, Agreement, compare, standard_error
from flows.report.tables import summarise
from mmrl_core.errors import UserError
from mmrl_core.evaluation.bootstrap import Outcomes, paired_gains
from mmrl_core.files import write_json
from tests.support.results import choose_otherwise, results_of_two_datasets, shift

KEY = ("digits", "digits", 16, "mmrl")
FACTS = {"protocol": "base-to-novel", "preset": "published", "backbone": "tiny"}


@pytest.fixture
def results():
    """To be changed."""
    return results_of_two_datasets()


@pytest.fixture
def against(tmp_path) -> Callable[..., Agreement]:
    """Compares a run's results with others, by default the fixture's."""

    def run(changed: dict, reference: dict | None = None) -> Agreement:
        write_json(tmp_path / "run.json", changed)
        write_json(tmp_path / "reference.json", reference or results_of_two_datasets())
        return compare(tmp_path / "reference.json", tmp_path / "run.json")

    return run


def apart(agreement: Agreement) -> set:
    return {(figure.dataset, figure.method, figure.part) for figure in agreement.apart}


def test_results_agree_with_themselves_in_every_figure(results, against):
    agreement = against(results)
    assert len(agreement.figures) == 2 * 3 * 3 and not agreement.apart
    assert not agreement.only_reference and not agreement.only_run


@pytest.mark.parametrize("by", [-0.03, 0.03])
def test_three_points_of_the_harmonic_mean_are_found_on_digits_whatever_was_chosen(results, against, by):
    choose_otherwise(results)
    shift(results["rows"][1], by)
    found = apart(against(results))
    assert ("digits", "MMRL", "harmonic_mean") in found and {one[:2] for one in found} == {("digits", "MMRL")}


def test_one_point_is_noise_of_the_search_and_none_of_the_same_settings(results, against):
    shift(results["rows"][1], -0.01)
    assert ("digits", "MMRL", "harmonic_mean") in apart(against(results))
    choose_otherwise(results)
    agreement = against(results)
    assert not agreement.apart and agreement.other_choices == ["digits, 16 shots, MMRL"]


def test_a_probe_beside_a_method_is_of_the_methods_search(results, against):
    probed = {**results, "rows": [{**row, "method": f"{row['method']}+probe"} for row in results["rows"][1:2]]}
    reference = deepcopy(probed)
    choose_otherwise(probed)
    assert against(probed, reference).other_choices == ["digits, 16 shots, MMRL + probe"]


def test_a_run_is_not_excused_by_scattering_more(results, against):
    for row in results["rows"][1:3]:
        shift(row, -0.03)
        row["gain"] = {part: {"mean": gain["mean"], "low": -0.2, "high": 0.2} for part, gain in row["gain"].items()}
    assert len(apart(against(results))) == 2 * 3


def test_zero_shot_may_differ_by_an_image_or_two_and_not_by_a_point(results, against):
    base = results["rows"][0]["accuracy"]["base"]
    base["mean"] += 2 / 600
    assert not against(results).apart
    base["mean"] -= 0.01
    assert apart(against(results)) == {("digits", "zero-shot CLIP", "base")}


def test_the_more_figures_are_compared_the_more_each_may_differ(results, against):
    [_, few, *_], [_, many, *_] = (
        [one for one in against(some).figures if one.part == "base"]
        for some in ({**results, "rows": results["rows"][:3]}, results)
    )
    assert few[:4] == many[:4] == ("digits", 16, "MMRL", "base") and few.bound < many.bound


def test_a_standard_error_has_the_part_of_the_seeds_spread_that_a_bootstrap_of_three_misses():
    rng = np.random.default_rng(0)
    runs = [{"all": outcomes(np.arange(2000) < 2000 * rng.normal(0.8, 0.02))} for _ in range(3)]
    [_, row] = rows_of(runs)
    images = 0.8 * 0.2 / 2000
    seeds = row["accuracy"]["all"]["std"] ** 2 / 3
    assert standard_error(row, "all") ** 2 == pytest.approx(seeds + images, rel=0.15)


def outcomes(right: np.ndarray, zero_shot: np.ndarray | None = None) -> Outcomes:
    none = np.zeros(len(right), bool)
    return Outcomes([str(item) for item in range(len(right))], right, none if zero_shot is None else zero_shot)


def rows_of(runs: list[dict[str, Outcomes]]) -> list[dict]:
    metrics = [
        {"seed": seed, "parts": list(run), **scores(run, "adapted"), "zero_shot": scores(run, "zero_shot")}
        for seed, run in enumerate(runs)
    ]
    return summarise({KEY: metrics}, {KEY: paired_gains(runs, 500)})


def scores(run: dict[str, Outcomes], which: str) -> dict:
    return {part: {"accuracy": float(getattr(one, which).mean()), "ece": 0.0} for part, one in run.items()}


def test_runs_that_differ_by_chance_alone_are_rarely_told_apart(against):
    """Other images, few-shot sets and trainings: more chance than two machines have. Zero-shot then differs too."""
    rng, tables = np.random.default_rng(0), 20
    choices = [[{"dataset": "digits", "method": "mmrl", "template": "", "choice": {"params": {"train.lr": rate}}}]
               for rate in (0.001, 0.004)]  # fmt: skip
    found = [
        apart(against(*({**FACTS, "rows": drawn(rng), "searches": one} for one in choices))) for _ in range(tables)
    ]
    assert sum(any(method == "MMRL" for _, method, _ in one) for one in found) <= 2 * LEVEL * tables


def drawn(rng: np.random.Generator) -> list[dict]:
    """Rows of 3 seeds on 600 images a part, whose accuracies are 0.97 but for the few-shot sets."""
    difficulty, runs = {part: rng.random(600) for part in ("base", "novel")}, []
    for _ in range(3):
        runs.append({part: outcomes(each < rng.normal(0.97, 0.006), each < 0.95) for part, each in difficulty.items()})
    return rows_of(runs)


def test_rows_that_only_one_has_are_named_and_fail_nothing(results, against):
    other = {**results, "rows": [*results["rows"][:3], {**results["rows"][1], "method": "another"}]}
    agreement = against(other)
    assert not agreement.apart and agreement.only_run == ["digits, 16 shots, another"]
    assert agreement.only_reference == [f"objects, 16 shots, {name}" for name in ("zero-shot CLIP", "MMRL", "MMRL++")]


def test_tables_of_one_part_and_one_seed_are_compared(against):
    def of(mean: float) -> dict:
        gain = {"mean": mean - 0.5, "low": mean - 0.55, "high": mean - 0.45}
        row = {"source": "digits", "target": "letters", "shots": 4, "method": "another", "seeds": [1],
               "accuracy": {"all": {"mean": mean, "std": 0.0}}, "ece": {"all": 0.1}, "gain": {"all": gain}}  # fmt: skip
        return {**FACTS, "protocol": "cross-dataset", "rows": [row], "searches": []}

    [figure] = against(of(0.5), of(0.7)).apart
    assert figure[:4] == ("digits to letters", 4, "another", "all")
    assert figure.bound == pytest.approx(0.05 * 2**0.5 / 4)  # of a single figure there is nothing to correct


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: results.update(protocol="joint"), "other settings: protocol joint and base-to-novel"),
        (lambda results: results.update(backbone="ViT-B-16"), "other settings: backbone ViT-B-16 and tiny"),
        (lambda results: results.update(preset="mine"), "other settings: preset mine and published"),
        (lambda results: [row.update(shots=4) for row in results["rows"]], "have no row of the same dataset, shots"),
        (lambda results: results["rows"][1].update(seeds=[1, 2]),
         "other settings: seeds of digits, 16 shots, MMRL [1, 2] and [1, 2, 3]"),
        (lambda results: [(row.pop("harmonic_mean_std"), row.pop("harmonic_mean")) for row in results["rows"]],
         "other settings: parts of digits, 16 shots, zero-shot CLIP ['base', 'novel'] and"),
    ],
)  # fmt: skip
def test_runs_of_other_settings_are_not_compared(results, against, change, message):
    change(results)
    with pytest.raises(UserError, match=re.escape(message)):
        against(results)
