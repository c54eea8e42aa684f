"""Rows, tables and their averages, from results of which the answer is known."""

import csv
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from flows.project.paths import RunKey
from flows.report.page import _differences
from flows.report.summary import _results_md, read_rows, read_summary
from flows.report.tables import MORE, averages, error_ratio, interval, markdown, more_table, results_csv, title
from flows.settings.params import Params
from mmrl_core.errors import UserError
from tests.support.results import (
    MATRIX,
    RUNS,
    rewrite,
    write_run,
    write_search,
)


def test_rows_hold_means_gains_and_the_share_of_zero_shots_error(runs):
    zero_shot, row = read_rows(runs)
    assert (zero_shot["method"], row["method"], row["seeds"]) == ("zero_shot", "mmrl", [1, 2])
    assert row["accuracy"]["base"] == {"mean": 0.875, "std": pytest.approx(0.1768, abs=1e-4), "values": [1.0, 0.75]}
    assert row["harmonic_mean"] == pytest.approx(2 * 0.875 * 0.5 / 1.375)
    assert row["harmonic_mean_std"] == pytest.approx((2 / 3 - 0.6) / 2**0.5)
    assert row["error_ratio"] == pytest.approx({"base": 0.25, "novel": 1.0})
    assert row["gain"]["base"]["mean"] == pytest.approx(0.375)
    assert row["gain"]["harmonic_mean"]["mean"] == pytest.approx(row["harmonic_mean"] - zero_shot["harmonic_mean"])
    assert row["gain"]["novel"] == {"mean": 0, "low": 0, "high": 0}
    assert row["ece"] == pytest.approx({"base": 0.03, "novel": 0.03})
    assert zero_shot["ece"]["base"] == pytest.approx(0.11)


def test_a_protocol_of_one_part_has_no_harmonic_mean(folder):
    write_run(RUNS[0][0], {"all": 3})
    zero_shot, row = read_rows(RUNS[:1])
    assert row["accuracy"]["all"]["mean"] == 0.75 and "harmonic_mean" not in row and "harmonic_mean" not in row["gain"]
    assert markdown([zero_shot, row]).splitlines()[-1] == "| digits | 16 | MMRL | 75.0 | +25.0 [+0.0, +75.0] | 2.0 |"


def test_tables_show_the_gain_with_its_interval_and_both_calibrations(runs):
    rows = read_rows(runs)
    zero_shot, adapted = markdown(rows).splitlines()[2:]
    gain = rows[1]["gain"]["harmonic_mean"]
    interval = f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    assert interval in adapted and "[" not in zero_shot
    assert adapted.endswith("| 3.0 / 3.0 |") and "±" in adapted and "±" not in zero_shot


def test_an_average_is_over_datasets_and_its_harmonic_mean_is_that_of_the_averages(folder):
    other = [(RunKey("objects", "mmrl", 16, seed), None) for seed in (1, 2)]
    for (key, _), right in zip([*RUNS, *other], ((4, 2), (3, 2), (2, 4), (1, 4)), strict=True):
        write_run(key, dict(zip(("base", "novel"), right, strict=True)))
    rows = read_rows([*RUNS, *other])
    zero_shot, adapted = averages(rows)
    assert (zero_shot["method"], adapted["method"], adapted["datasets"]) == ("zero_shot", "mmrl", 2)
    base, novel = (0.875 + 0.375) / 2, (0.5 + 1.0) / 2
    assert adapted["accuracy"]["base"]["mean"] == base and adapted["accuracy"]["novel"]["mean"] == novel
    assert adapted["accuracy"]["base"]["values"] == [0.75, 0.5]  # a seed, over both
    assert adapted["harmonic_mean"] == pytest.approx(2 * base * novel / (base + novel))
    assert averages(rows[:2]) == []


def test_with_targets_the_average_leaves_the_source_out(folder):
    targets = ("letters", "objects")
    runs = [(RUNS[0][0], target) for target in (None, *targets)]
    for (key, target), right in zip(runs, (4, 3, 1), strict=True):
        write_run(key, {"all": right}, target)
    rows = read_rows(runs)
    assert [title(row) for row in rows[1::2]] == ["digits", "digits to letters", "digits to objects"]
    assert averages(rows)[1]["accuracy"]["all"]["mean"] == pytest.approx(0.5)


def test_published_figures_are_kept_apart_and_only_for_their_protocol(runs):
    write_search(RUNS[0][0], {}, 1)
    found = read_summary(Params(**MATRIX), runs)
    assert found["published"]["published"] is True and "not measured here" in found["published"]["source"]
    assert {row["method"] for row in found["rows"]} == {"zero_shot", "mmrl"}
    mmrl = next(row for row in found["published"]["rows"] if row["method"] == "MMRL")
    assert mmrl == {"method": "MMRL", "base": 85.68, "novel": 77.16, "harmonic_mean": 81.20}
    assert read_summary(Params(**MATRIX, data={"protocol": "joint"}), runs)["published"] is None


def test_a_csv_line_a_row_and_part(runs):
    lines = list(csv.DictReader(results_csv(read_rows(runs)).splitlines()))
    assert [(line["method"], line["part"]) for line in lines[3:]] == [
        ("mmrl", "base"), ("mmrl", "novel"), ("mmrl", "harmonic_mean")]  # fmt: skip
    assert float(lines[3]["mean"]) == 0.875 and float(lines[3]["gain"]) == pytest.approx(0.375) and not lines[0]["gain"]


def test_more_metrics_have_a_table_of_their_own_and_columns_of_the_csv(folder):
    for dataset, key in (("digits", RUNS[0][0]), ("objects", RunKey("objects", "mmrl", 16, 1))):
        write_run(key, {"base": 4, "novel": 2})
        if dataset == "objects":
            rewrite(key.results() / "metrics.json", lambda one: one["novel"].pop("top5_accuracy"))
    rows = read_rows([RUNS[0], (key, None)])
    rows += averages(rows)
    names, lines = more_table(rows)
    assert names[3:] == [f"{name} base / novel" for name in ("macro F1", "balanced accuracy", "top-5", "AUROC")]
    figures = ["40.0 / 40.0", "45.0 / 45.0", "95.0 / 95.0", "90.0 / 90.0"]
    few = [*figures[:2], "95.0 / –", figures[3]]
    assert [line[3:] for line in lines] == [figures, figures, figures, few, figures, few]
    found = list(csv.DictReader(results_csv(rows).splitlines()))
    assert (found[3]["macro_f1"], found[3]["auroc"], found[5]["auroc"]) == ("0.4", "0.9", "")


def test_results_of_an_earlier_version_are_read_without_more_metrics(runs):
    for key, _ in runs:
        rewrite(key.results() / "metrics.json", without_more)
    rows = read_rows(runs)
    assert more_table(rows)[1] == [] and rows[1]["auroc"] == {}
    assert list(csv.DictReader(results_csv(rows).splitlines()))[3]["auroc"] == ""


def without_more(metrics: dict) -> None:
    for scores in (metrics, metrics["zero_shot"]):
        for part in metrics["parts"]:
            for name in MORE:
                del scores[part][name]


def test_methods_are_compared_beneath_the_results_and_in_the_summary(runs):
    probe = [(key._replace(method="linear_probe"), None) for key, _ in runs]
    for (key, _), right in zip(probe, (2, 4), strict=True):
        write_run(key, {"base": right, "novel": 2})
    write_search(RUNS[0][0], {}, 1)
    assert read_summary(Params(**MATRIX), runs)["comparisons"] == []
    summary = read_summary(Params(**MATRIX), [*runs, *probe])
    against_mmrl, against_probe = summary["comparisons"]
    assert [against_probe[name] for name in ("method", "against", "seeds")] == ["mmrl", "linear_probe", [1, 2]]
    assert against_probe["difference"]["base"]["mean"] == pytest.approx(0.875 - 0.75)
    lines = [
        "| dataset | shots | method | base against linear probe [95%] | harmonic mean against MMRL [95%] |",
        "| --- | --- | --- | ---: | ---: |",
        f"| digits | 16 | linear probe |  | {interval(against_mmrl['difference']['harmonic_mean'])} |",
        f"| digits | 16 | MMRL | {interval(against_probe['difference']['base'])} |  |",
    ]
    assert _results_md(summary).endswith("\n\nPaired differences:\n\n" + "\n".join(lines) + "\n")
    assert "<h2>Methods against each other</h2>" in _differences(summary)


def test_rows_of_results_are_in_the_order_of_the_methods(folder):
    keys = [RunKey("digits", method, 16, 1) for method in ("tip_adapter", "mmrlpp", "linear_probe", "mmrl")]
    for key in keys:
        write_run(key, {"all": 3})
    assert [row["method"] for row in read_rows([(key, None) for key in keys])] == [
        "zero_shot", "linear_probe", "tip_adapter", "mmrl", "mmrlpp"]  # fmt: skip


def test_no_error_leaves_no_share():
    assert error_ratio(0.9, 1.0) is None


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: path.unlink(),
     "is not there; run `mmrl evaluate --dataset digits --method mmrl --shots 16 --seed 2` again"),
    (lambda path: path.write_bytes(b"PAR1"), "cannot be read; run `mmrl evaluate --dataset digits"),
    (lambda path: pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), path), "cannot be read"),
    (lambda path: pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), path), "has no image"),
])  # fmt: skip
def test_missing_or_foreign_predictions_are_named(runs, damage, message):
    damage(RUNS[1][0].results() / "predictions.parquet")
    with pytest.raises(UserError, match=message):
        read_rows(runs)


def test_reading_results_takes_no_torch(runs):
    code = "import flows.report.summary, flows.report.material, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert json.dumps(read_rows(runs)) == json.dumps(read_rows(runs))
