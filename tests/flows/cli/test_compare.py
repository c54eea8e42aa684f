"""`mmrl compare`: what it prints and how it ends."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrl_core.files import write_json
from tests.support.results import results_of_two_datasets, shift

HEADER = ["dataset", "shots", "method", "figure", "there (gain)", "here (gain)", "difference", "noise", "agrees"]


@pytest.fixture
def change(tmp_path, monkeypatch) -> Callable[[float], None]:
    """In a folder with a run's results and the same kept, changes the figures of the run's second row."""
    monkeypatch.chdir(tmp_path)
    results = results_of_two_datasets()
    write_json("kept.json", results)

    def run(by: float) -> None:
        shift(results["rows"][1], by)
        write_json("reports/summary.json", results)

    run(0)
    return run


def test_a_run_that_agrees_is_shown_figure_by_figure(change, mmrl):
    change(-0.004)
    header, *lines, last = mmrl("compare", "kept.json").splitlines()
    assert re.split("  +", header) == HEADER and all(line.endswith("yes") for line in lines)
    assert re.split("  +", lines[3])[2:7] == ["MMRL", "base", "96.0 (+2.0)", "95.6 (+1.6)", "-0.40"]
    assert last == "reports/summary.json agrees with kept.json in all 18 figures"


def test_a_run_that_does_not_agree_ends_with_1_and_names_its_figures(change, mmrl):
    change(-0.05)
    error = mmrl("compare", "kept.json", code=1)
    assert error.startswith("mmrl: reports/summary.json does not agree with kept.json: digits, 16 shots, MMRL: base ")
    assert "MMRL: harmonic mean 91.0 (-3.0) against 96.0 (+2.0), where noise is 0.5" in error and error.count("\n") == 1
    assert mmrl.out.count(" no\n") == 3


def test_json_says_of_every_figure_whether_it_agrees(change, mmrl):
    assert json.loads(mmrl("compare", "kept.json", "--json"))["agrees"] is True
    change(-0.05)
    mmrl("compare", "kept.json", "--json", code=1)
    found = json.loads(mmrl.out)
    assert found["agrees"] is False and found["only"] == {"kept.json": [], "reports/summary.json": []}
    assert found["other_choices"] == []
    wrong = [(one["method"], one["part"]) for one in found["figures"] if not one["agrees"]]
    assert wrong == [("MMRL", "base"), ("MMRL", "novel"), ("MMRL", "harmonic_mean")]
    assert found["figures"][3]["difference"] == pytest.approx(-0.05)


def test_a_run_is_kept_in_place_of_another(change, mmrl):
    change(-0.05)
    said = mmrl("compare", "kept.json", "--keep").splitlines()
    assert said[0].startswith("| dataset | shots | method |") and said[-1].startswith("kept.json is of ")
    mmrl("compare", "kept.json")
    said = json.loads(mmrl("compare", "again.json", "--keep", "--json"))
    assert {"schema_version": 1, **said} == json.loads(Path("again.json").read_text())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["nowhere.json"], "nowhere.json does not exist; run `mmrl compare nowhere.json --keep` first"),
        (["kept.json", "nowhere.json"], "nowhere.json does not exist; run `mmrl summarize` first"),
        (["kept.json", "later.json"], "later.json has schema_version 9, this release reads 1"),
        (["kept.json", "."], ". cannot be read (Is a directory)"),
        (["later.json", "--keep"], "later.json has schema_version 9"),
        (["kept.json/x", "--keep"], "kept.json/x cannot be written (File exists)"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_ends_with_exit_2_and_one_line(change, mmrl, command, message):
    Path("later.json").write_text('{"schema_version": 9}')
    error = mmrl("compare", *command, code=2)
    assert message in error and error.count("\n") == 1
