"""Whose an entry of DVC's lock file is, by the real process that has its pid."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo

from flows.orchestration.dvc_holders import RWLOCK, settle
from tests.support.processes import PATIENCE, wait_until

COMMAND = "repro --single-item train@a-1"
PYTHON = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
LONG_AGO = 1e9  # before any process began


@pytest.fixture
def root(tmp_path) -> Path:
    Repo.init(str(tmp_path), no_scm=True).close()
    return tmp_path


@pytest.fixture
def start():
    """Starts a process, which ends with the test."""
    with ExitStack() as stack:

        def start(*command: str, program: str | None = None) -> int:
            process = subprocess.Popen(command, executable=program)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process.pid

        yield start


def lock(root: Path, pid: int, at: float | None = None) -> list[str]:
    """Have DVC's file name the process as a writer and a reader; what DVC would say of it."""
    entry, other = {"pid": pid, "cmd": f"/lib/dvc/__main__.py {COMMAND}"}, {"pid": os.getpid(), "cmd": "dvc add"}
    paths = {name: str(root / name) for name in ("a", "b", "c")}
    document = {"write": {paths["a"]: entry}, "read": {paths["b"]: [entry, other], paths["c"]: [entry]}}
    (root / RWLOCK).write_text(json.dumps(document))
    if at:
        os.utime(root / RWLOCK, (at, at))
    return [f"ERROR: '{paths['a']}' is busy, it is being blocked by:", f"  (PID {pid}): {entry['cmd']}"]


def left(root: Path) -> tuple[int, list[int]]:
    """How many paths are written, and who is reading how many."""
    document = json.loads((root / RWLOCK).read_text())
    return len(document["write"]), sorted(entry["pid"] for readers in document["read"].values() for entry in readers)


def test_one_of_a_process_that_cannot_be_dvc_or_began_later_is_removed_and_no_other(root, start):
    for command, at in ((["sleep", "600"], None), (PYTHON, LONG_AGO)):
        pid = start(*command)
        [holder] = settle(root, lock(root, pid, at))
        assert holder.wrote_it is False
        assert holder.line.startswith(
            f"the lock of `/lib/dvc/__main__.py {COMMAND}`, which has ended, is removed: pid {pid}"
        )
        assert left(root) == (0, [os.getpid()])


def test_one_of_a_killed_process_that_nobody_waited_for_is_removed(root):
    with subprocess.Popen(["true"]) as process:
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, PATIENCE, lambda: "its end")
        [holder] = settle(root, lock(root, process.pid))
        assert "is now `a zombie`" in holder.line
        assert left(root) == (0, [os.getpid()])


def test_one_of_dvcs_own_process_stays_whatever_the_clock_says(root, start):
    pid = start(*PYTHON, "dvc", *COMMAND.split())
    [holder] = settle(root, lock(root, pid, LONG_AGO))
    assert holder.line.startswith(f"it is busy: pid {pid} works on the same files (`{sys.executable} ")
    assert left(root) == (1, sorted([pid, pid, os.getpid()]))


def test_one_that_another_python_process_may_have_written_stays_and_is_named(root, start):
    pid = start(*PYTHON, "postgresql://me:secret@host/db")
    [holder] = settle(root, lock(root, pid))
    assert f"as pid {pid}, which is `{sys.executable} " in holder.line and "secret" not in holder.line
    assert holder.line.endswith("if that is none of DVC's, remove .dvc/tmp/rwlock")
    assert left(root) == (1, sorted([pid, pid, os.getpid()]))


def test_one_of_a_python_process_that_calls_itself_otherwise_stays(root, start):
    pid = start("ray::train", *PYTHON[1:], program=sys.executable)
    [holder] = settle(root, lock(root, pid))
    assert (holder.wrote_it, left(root)[0]) == (None, 1)


def test_a_file_that_cannot_be_read_is_left_to_dvc(root):
    (root / RWLOCK).write_text("{")
    assert settle(root, ["ERROR: 'a' is busy, it is being blocked by:", "  (PID 1): dvc repro"]) == []
    assert (root / RWLOCK).read_text() == "{"
