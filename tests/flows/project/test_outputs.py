"""What a killed writer of an output leaves, and who removes it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.project.outputs import atomic_output, remove_leftovers

KILLED = """
import os, signal
from pathlib import Path
from flows.project.outputs import atomic_output
with atomic_output(Path("out")) as path:
    path.mkdir()
    (path / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path, monkeypatch) -> Path:
    """The output of a process that was killed as it wrote it; nothing is there but what it left."""
    monkeypatch.chdir(tmp_path)
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == -signal.SIGKILL
    assert left() and not Path("out").exists()
    return Path("out")


def left() -> list[str]:
    return os.listdir(".mmrl/aside")


def test_the_next_writer_removes_it(killed):
    with atomic_output(killed) as path:
        path.touch()
    assert killed.is_file() and not left()


def test_whoever_finds_the_output_as_it_should_be_removes_it(killed):
    remove_leftovers(killed)
    assert not left()


def test_what_another_one_is_writing_stays(killed):
    with atomic_output(killed) as path:
        path.touch()
        remove_leftovers(killed)
        assert path.exists()
    assert killed.is_file()
