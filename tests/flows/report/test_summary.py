"""Rows of runs with and without a probe, and of baselines."""

import csv
import json

import pytest

from flows.project.paths import RunKey
from flows.report.summary import read_rows
from flows.report.tables import METHOD_TITLES, averages, header, markdown, results_csv
from tests.support.results import write_run

RUNS = [(RunKey("digits", "mmrl", 16, seed), None) for seed in (1, 2)]


def add(key: RunKey, **figures: dict[str, float]) -> None:
    """To parts of its metrics.json."""
    path = key.results() / "metrics.json"
    metrics = json.loads(path.read_text())
    for part, more in figures.items():
        metrics[part] |= more
    path.write_text(json.dumps(metrics))


def test_a_run_with_a_probe_is_two_rows_and_a_seed_without_counts_in_both(folder):
    write_run(RUNS[0][0], {"all": 4}, without={"all": 3})
    write_run(RUNS[1][0], {"all": 2})
    zero_shot, plain, fused = read_rows(RUNS)
    assert [row["method"] for row in (zero_shot, plain, fused)] == ["zero_shot", "mmrl", "mmrl+probe"]
    assert plain["accuracy"]["all"]["values"] == [0.75, 0.5] and fused["accuracy"]["all"]["values"] == [1.0, 0.5]
    assert plain["ece"]["all"] == pytest.approx((0.03 + 0.04) / 2) and fused["ece"]["all"] == pytest.approx(0.03)
    assert [row["gain"]["all"]["mean"] for row in (plain, fused)] == [0.125, 0.25]
    assert [line.split(" | ")[2] for line in markdown([plain, fused]).splitlines()[2:]] == ["MMRL", "MMRL + probe"]


def test_where_one_dataset_wants_a_probe_all_have_both_rows_so_that_averages_are_over_the_same(folder):
    other = RunKey("objects", "mmrl", 16, 1)
    write_run(RUNS[0][0], {"all": 4}, without={"all": 3})
    write_run(other, {"all": 2})
    rows = read_rows([RUNS[0], (other, None)])
    assert [(row["source"], row["method"]) for row in rows if row["method"] != "zero_shot"] == [
        ("digits", "mmrl"), ("digits", "mmrl+probe"), ("objects", "mmrl"), ("objects", "mmrl+probe")]  # fmt: skip
    assert [row["accuracy"]["all"]["mean"] for row in averages(rows)] == [0.5, 0.625, 0.75]


def test_rows_of_a_group_are_in_the_order_of_the_titles(folder):
    kinds = ("mmrlpp", "tip_adapter_f", "mmrl", "linear_probe", "tip_adapter")
    runs = [(RUNS[0][0]._replace(method=kind), None) for kind in kinds]
    for key, _ in runs:
        write_run(key, {"all": 4}, without={"all": 3} if key.method.startswith("mmrl") else None)
    assert [row["method"] for row in read_rows(runs)] == list(METHOD_TITLES)


def test_calibration_before_temperatures_is_shown_where_every_seed_has_some(folder):
    for key, _ in RUNS:
        write_run(key, {"base": 3, "novel": 2})
    for key, _ in RUNS:
        add(key, base={"ece_uncalibrated": 0.09})
    assert "ece_uncalibrated" not in read_rows(RUNS)[1]
    for key, _ in RUNS:
        add(key, novel={"ece_uncalibrated": 0.07})
    rows = read_rows(RUNS)
    assert rows[1]["ece_uncalibrated"] == pytest.approx({"base": 0.09, "novel": 0.07})
    assert markdown(rows).splitlines()[-1].endswith("| 3.0 / 3.0 (9.0 / 7.0) |")
    lines = list(csv.DictReader(results_csv(rows).splitlines()))
    assert [line["ece_uncalibrated"] for line in lines[2:]] == ["", "0.09", "0.07", ""]
    assert header(rows)[-1] == "ECE base / novel (uncalibrated)"
