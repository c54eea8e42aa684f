"""Results that are kept, and what is refused to be read as such."""

import re
from pathlib import Path

import pytest

from flows.project.machine import in_words
from flows.report.agreement import compare
from flows.report.kept import keep, read_results
from mmrl_core.errors import Damaged
from mmrl_core.files import write_json
from tests.support.results import results_of_two_datasets


@pytest.fixture
def results():
    """To be changed."""
    return results_of_two_datasets()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: results.update(rows=[]), "has no figures; run `mmrl summarize` again"),
        (lambda results: results.pop("rows"), "has no 'rows'"),
        (lambda results: results.pop("searches"), "has no 'searches'"),
        (lambda results: results["rows"][2]["accuracy"].pop("base"), "digits, 16 shots, MMRL++ has other parts than"),
        (lambda results: results["rows"][1]["gain"].pop("novel"), "digits, 16 shots, MMRL has not every gain"),
        (lambda results: results["rows"][1].pop("harmonic_mean_std"), "without its deviation"),
        (lambda results: results["rows"][1]["accuracy"]["base"].update(mean=float("nan")), "rows.1.accuracy.base.mean"),
        (lambda results: results["rows"][1].update(shots="16"), "rows.1.shots"),
    ],
)  # fmt: skip
def test_results_that_are_not_whole_are_refused(results, tmp_path, change, message):
    change(results)
    write_json(tmp_path / "summary.json", results)
    with pytest.raises(Damaged, match=re.escape(message)):
        read_results(tmp_path / "summary.json")


def test_what_is_kept_is_the_run_with_its_machine_and_is_read_again(results, tmp_path):
    run, kept = tmp_path / "summary.json", tmp_path / "new/kept.json"
    write_json(run, {**results, "averages": [], "stale": []})
    written = keep(run, kept)
    assert written["rows"] == results["rows"] and "averages" not in written
    assert written["searches"] == results["searches"]
    machine = read_results(kept)["machine"]
    assert machine == written["machine"] and f"torch {machine['torch']}" in in_words(machine)
    assert not compare(kept, run).apart


def test_a_file_that_holds_no_results_is_not_overwritten(results, tmp_path):
    run, settings = tmp_path / "summary.json", Path(tmp_path / "params.yaml")
    write_json(run, results)
    settings.write_text("datasets: [digits]\n")
    with pytest.raises(Damaged, match="params.yaml is not valid JSON"):
        keep(run, settings)
    assert settings.read_text() == "datasets: [digits]\n"
