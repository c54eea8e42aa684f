"""A stage's command ends with the dvc that started it, whether a shell stands between them or not."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.support.processes import PATIENCE, TOKEN, command_of, end_all, processes_with, wait_until
from tests.support.workspace import ROOT, environment

HANG = """
import pathlib, time
from flows.processes.under_dvc import die_with_dvc
pathlib.Path("begun").touch()
while pathlib.Path("wait").exists():
    time.sleep(0.02)
die_with_dvc()
die_with_dvc()  # every output of a stage asks for it
pathlib.Path("watched").touch()
time.sleep(600)
"""
SHELLS = {
    "one that waits": "#!/bin/sh\nshift\neval \"$1\"\ntrue\n",
    "one that gives its place": "#!/bin/sh\nshift\nexec $1\n",
}  # fmt: skip


@pytest.fixture
def stage(tmp_path):
    """A command of dvc's under way, with either kind of shell."""
    started = []

    def start(shell: str) -> tuple[subprocess.Popen, str]:
        (tmp_path / "shell").write_text(SHELLS[shell])
        (tmp_path / "shell").chmod(0o755)
        token = uuid.uuid4().hex
        variables = {**environment(), TOKEN: token, "SHELL": str(tmp_path / "shell"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "dvc", "repro", "-q"]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=variables, start_new_session=True))
        return started[-1], token

    (tmp_path / "hang.py").write_text(HANG)
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  hang:\n    cmd: {sys.executable} hang.py\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    yield start
    for process in started:
        process.wait()


def comes(path: Path) -> None:
    wait_until(path.exists, PATIENCE, lambda: str(path))


def ends(token: str) -> None:
    try:
        wait_until(lambda: not processes_with(token), 20, lambda: f"the end of {processes_with(token)}")
    finally:
        end_all(token)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_dies_with_its_dvc(stage, tmp_path, shell, kill):
    dvc, token = stage(shell)
    comes(tmp_path / "watched")
    dvc.send_signal(kill)
    ends(token)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_whose_dvc_is_dead_already_dies_as_it_asks(stage, tmp_path, shell):
    (tmp_path / "wait").touch()
    dvc, token = stage(shell)
    comes(tmp_path / "begun")
    dvc.kill()
    dvc.wait()
    (tmp_path / "wait").unlink()
    ends(token)
    assert not (tmp_path / "watched").exists()


def test_a_command_dies_with_the_shell_that_dvc_put_around_it(stage, tmp_path):
    dvc, token = stage("one that waits")
    comes(tmp_path / "watched")
    shell = next(pid for pid in processes_with(token) if command_of(pid).startswith("/bin/sh"))
    os.kill(shell, signal.SIGKILL)
    ends(token)
    assert dvc.wait() != 0


def test_a_command_of_the_users_own_is_left_alone(tmp_path):
    (tmp_path / "alone.py").write_text(HANG.replace("600", "0"))
    variables = {name: value for name, value in environment().items() if name != "DVC_STAGE"}
    subprocess.run([sys.executable, "alone.py"], cwd=tmp_path, env={**variables, "PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "watched").exists()
