"""`python -m benchmarks.gpu` on a CPU at toy size: that every part runs, and that a part that fails is told."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bench import Bench, Row
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.run import Part, here, in_process
from benchmarks.gpu.told import lines, markdown
from benchmarks.scaling import main as predict
from tests.support.workspace import ROOT

CUDAS = {"graphs", "left-over"}
OWN_PROCESSES = {"two-at-once"}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[int, Path]:
    """The exit code of all parts but those that start processes, and what they found."""
    out = tmp_path_factory.mktemp("gpu") / "found.json"
    parts = [name for name in PARTS if name not in OWN_PROCESSES]
    return main([*parts, "--device", "cpu", "--quick", "--one-process", "--out", str(out)]), out


def test_every_part_runs_on_a_cpu_and_says_where_it_is_a_gpus_alone(found):
    code, out = found
    parts = json.loads(out.read_text())["parts"]
    assert code == 0 and {name: part["error"] for name, part in parts.items() if part["error"]} == {}
    assert {name for name, part in parts.items() if part["skipped"] == "not on a CPU"} == CUDAS
    assert all(part["rows"] or name in CUDAS for name, part in parts.items())
    assert all(row["value"] >= 0 for part in parts.values() for row in part["rows"])


def test_the_table_says_that_it_is_of_no_card(found):
    table = markdown(json.loads(found[1].read_text()))
    first, _, *rows = table.splitlines()
    assert first.startswith("On the CPU (") and "no figures of a card" in first
    assert {row.split("|")[1].strip() for row in rows[2:]} == PARTS.keys() - OWN_PROCESSES


def test_two_nodes_are_predicted_from_what_one_measured(found, capsys):
    predict([str(found[1]), "--link", "1,100"])
    title, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert "the CPU, toy sizes" in title
    predicted = [row.split() for row in rows if row.startswith("  mmrl")]
    assert [row[4] for row in predicted] == ["1", "100"] * 4  # two methods in two precisions, by both links
    sent, slow, fast = (float(predicted[row][column]) for row, column in ((0, 7), (0, 8), (1, 8)))
    # milliseconds of megabytes at gigabits a second, and five hops of 20 us
    assert slow == pytest.approx(8 * sent + 0.1, abs=0.06) and fast == pytest.approx(0.08 * sent + 0.1, abs=0.01)


def test_without_steps_there_is_nothing_to_predict_from(tmp_path, capsys):
    (tmp_path / "found.json").write_text(json.dumps({"device": "x", "toy": True, "parts": {}}))
    with pytest.raises(SystemExit):
        predict([str(tmp_path / "found.json")])
    assert "no steps were measured" in capsys.readouterr().err


def broken(bench: Bench):
    yield Row("before", 1.0, "s")
    raise ZeroDivisionError("of what it measures")


def wrong(bench: Bench):
    yield Row("a bound", 2.0, "", holds=False, more={"most": 1.0})


def test_a_part_that_fails_keeps_its_rows_and_says_of_what(tmp_path):
    part = here(Part(broken, 1), "cpu", True, tmp_path / "rows")
    assert [row["what"] for row in part.rows] == ["before"]
    assert part.error.startswith("ZeroDivisionError: of what it measures (test_gpu.py:")
    told = lines("broken", here(Part(wrong, 1), "cpu", True, tmp_path / "rows"))
    assert "FAILED: does not hold: a bound" in told[0] and "DOES NOT HOLD (at most 1)" in told[1]


def endless(bench: Bench):
    threading.Event().wait()
    yield Row("never", 1.0, "s")


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_ended():
    assert in_process(Part(endless, 1), 1, "cpu", True).error == "took longer than its 1 s"


@pytest.mark.slow
def test_the_command_runs_parts_in_processes_of_their_own_and_two_trainings_at_once():
    words = [sys.executable, "-m", "benchmarks.gpu", "products", "two-at-once", "--device", "cpu", "--markdown"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| two-at-once | tiny, training 2 of two at once" in done.stdout and "no part failed" in done.stdout


def test_no_part_is_unknown(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "no part nothing; there are golden, graphs" in capsys.readouterr().err
