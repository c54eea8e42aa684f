"""What a person sees of work that is under way: in lines, and on a terminal as a bar."""

import contextlib
import io
import os
import pty
import subprocess
import sys
import threading

import pytest

from flows.project.progress import Count, Lines, _counting, progress
from tests.flows.conftest import PREPARE, RUN
from tests.support.processes import PATIENCE, wait_until
from tests.support.workspace import ROOT, environment, run

EPOCHS = """
from flows.project.progress import progress
with progress("train digits", 3, what="epoch") as report:
    for epoch in 1, 2, 3:
        report(epoch, note=f"loss 0.{epoch}")
"""
FIRST_LINE = """
import os, sys
class First:
    def write(self, line):
        print(repr(line), *{"torch", "ray", "mlflow", "matplotlib"} & set(sys.modules))
        sys.stdout.flush()
        os._exit(0)
    def isatty(self):
        return False
    def flush(self):
        pass
sys.stderr = First()
from flows.cli import main
main()
"""


def listening() -> contextlib.redirect_stderr:
    return contextlib.redirect_stderr(io.StringIO())


def count(label: str = "train digits", total: int | None = 10, unit: str = "", what: str = "epoch") -> Count:
    return Count(label, total, unit, what, now=100)


def test_a_count_says_how_far_it_is_what_it_came_to_and_what_is_left():
    epochs, images = count(), count(total=800, unit="images", what="")
    assert (epochs.words(100), images.words(100)) == ("epoch 0/10", "0/800 images")
    epochs.move(102, 1)
    epochs.move(104, 2, note="loss 0.412")
    images.move(106, 320)
    assert epochs.words(104) == "epoch 2/10, loss 0.412, about 15 s left"
    assert images.words(106) == "320/800 images, about 9 s left"
    epochs.move(120, 10, note="loss 0.3")
    assert epochs.last_words(121) == "epoch 10/10, loss 0.3, 21 s in all"


def test_what_is_left_shrinks_as_time_goes_by_and_is_not_said_of_the_last_one_that_is_overdue():
    trials = count(total=2, what="trial")
    trials.move(160, 1)
    left = [trials.words(now) for now in (160, 190, 218, 300)]
    assert left == [f"trial 1/2{rest}" for rest in (", about 1 min left", ", about 30 s left", ", about 2 s left", "")]


def test_minutes_and_hours_are_said_as_such():
    images = count(total=1000, unit="images", what="")
    images.move(110, 10)
    assert images.words(110) == "10/1000 images, about 16 min left"
    images.move(400, 11)
    assert images.words(400) == "11/1000 images, about 7 h left"


@pytest.mark.parametrize("reports", [[(100.01, 1), (100.02, 2), (100.03, 5)], [(103, 5)]])
def test_what_an_earlier_process_did_tells_nothing_of_what_is_left(reports):
    epochs = count()
    for now, done in reports:
        epochs.move(now, done)
    assert epochs.words(103) == "epoch 5/10, 3 s so far"
    epochs.move(110, 6)
    assert epochs.words(110) == "epoch 6/10, about 40 s left"


def test_before_anything_is_counted_it_starts_and_then_says_for_how_long():
    summary = count("summarize", total=None, what="")
    assert [summary.words(now) for now in (100, 108, 400)] == ["starting", "8 s so far", "5 min so far"]


def test_of_things_that_take_unlike_times_nothing_is_said_to_be_left():
    items = Count("adapt", 14, "", "item", now=0, alike=False)
    items.move(30, 3)
    assert items.words(30) == "item 3/14, 30 s so far"


def test_work_begins_and_ends_with_a_line():
    with listening() as said, progress("train digits", 3, what="epoch") as report:
        assert said.getvalue() == "train digits: epoch 0/3\n"
        for epoch in (1, 2, 3):
            report(epoch, note=f"loss 0.{epoch}")
    first, *_, last = said.getvalue().splitlines()
    assert first == "train digits: epoch 0/3" and last.startswith("train digits: epoch 3/3, loss 0.3, ")


def test_work_within_work_is_what_is_spoken_of_and_starts_once():
    with listening() as said, progress("prepare digits"), progress("prepare digits", unit="images") as report:
        report(5, total=5)
    first, last = said.getvalue().splitlines()
    assert first == "prepare digits: starting" and last.startswith("prepare digits: 5/5 images, ")


def test_where_work_fails_its_error_is_the_last_line():
    with listening() as said, pytest.raises(KeyboardInterrupt), progress("train digits", 3, what="epoch"):
        raise KeyboardInterrupt
    assert said.getvalue() == "train digits: epoch 0/3\n"


def test_work_that_reports_nothing_is_spoken_of_all_the_same_until_it_ends():
    begun = threading.active_count()
    with listening() as said:
        with _counting(Lines(gap=0.01, beat=0.01), count()):
            wait_until(lambda: said.getvalue().count("\n") > 3, PATIENCE, said.getvalue)
        wait_until(lambda: threading.active_count() <= begun, PATIENCE, said.getvalue)
    assert {line.partition(",")[0] for line in said.getvalue().splitlines()} == {"train digits: epoch 0/10"}


def test_news_that_came_too_soon_after_a_line_is_told_later():
    with listening() as said, _counting(Lines(gap=0.01, beat=PATIENCE), count()) as report:
        report(1)
        report(4)
        wait_until(lambda: "epoch 4/10" in said.getvalue(), PATIENCE, said.getvalue)


def test_where_nobody_reads_the_work_goes_on():
    reading, writing = os.pipe()
    os.close(reading)
    variables = {**environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", EPOCHS + "print('done')"]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=writing)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_progress_keeps_no_process_alive(tmp_path):
    script = 'from flows.project.progress import progress\nunder_way = progress("train", 3)\nunder_way.__enter__()'
    assert run(tmp_path, sys.executable, "-c", script).stderr == "train: 0/3\n"


@pytest.mark.parametrize(
    "command",
    [PREPARE[1], PREPARE[2], ["tune", *RUN[:4]], ["tune", *RUN[:4], "--confirm", "2"], ["train", *RUN],
     ["evaluate", *RUN], ["summarize"], ["flow", "adapt"]],
    ids=" ".join,
)  # fmt: skip
def test_a_command_speaks_before_it_imports_what_takes_seconds(project, command):
    script = f"import sys\nsys.argv = {['mmrl', *command]}\n{FIRST_LINE}"
    said = run(project, sys.executable, "-c", script).stdout
    assert said.endswith(": starting\\n'\n")


def test_a_terminal_has_a_bar_that_leaves_nothing():
    ours, theirs = pty.openpty()
    variables = {**environment(), "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", EPOCHS], env=variables, stderr=theirs):
        os.close(theirs)
        shown = b"".join(iter(lambda: read(ours), b"")).decode()
    os.close(ours)
    assert "train digits" in shown and "━" in shown and "epoch 3/3, loss 0.3" in shown
    assert shown.endswith("\x1b[1A\x1b[2K")  # up by one line, which is cleared


def read(terminal: int) -> bytes:
    """Nothing once its last process has ended."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
