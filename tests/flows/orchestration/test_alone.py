"""One flow a folder at a time, and params.yaml as it was after a flow that failed, was stopped or was killed."""

import subprocess
import sys

import pytest

from flows.orchestration.alone import NOTE, alone, put_back_left
from flows.settings.params import load_params
from mmrl_core.errors import UserError

BEFORE = "# mine\ndatasets: [digits]   # one\nmethods: ['mmrl']\n\nshots: [16]\nseeds: [1]\ntrain: {lr: 0.001}\n"
FLOW = """
import sys
from pathlib import Path
from flows.orchestration.alone import alone
with alone(Path("params.yaml"), sys.argv[1:]):
    print(Path("params.yaml").read_text(), end="", flush=True)
    print("running", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(BEFORE)
    return tmp_path / "params.yaml"


@pytest.fixture
def start():
    """Starts a flow that runs until its stdin is closed, or it is killed."""
    started = []

    def run(*changes):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", FLOW, *changes], text=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def settings_while_running(process) -> str:
    """Its params.yaml once it runs."""
    return "".join(iter(process.stdout.readline, "running\n"))


def _end(path, changes, error, edited=None):
    with alone(path, changes):
        assert load_params().seeds == [2]
        if edited:
            path.write_text(edited)
        raise error


def test_the_changes_are_there_in_the_block_and_stay_where_it_succeeds(path):
    with alone(path, ["seeds=[2]"]):
        assert load_params().seeds == [2]
    assert path.read_text() == BEFORE.replace("seeds: [1]", "seeds: [2]")
    assert not NOTE.exists()


@pytest.mark.parametrize("error", [ValueError, UserError, KeyboardInterrupt, SystemExit])
def test_a_flow_that_fails_or_is_stopped_leaves_the_settings_as_they_were(path, error, capsys):
    with pytest.raises(error, match="stopped"):
        _end(path, ["seeds=[2]", "train.lr=0.1"], error("stopped"))
    assert path.read_text() == BEFORE
    assert not NOTE.exists() and "params.yaml is again as it was before" in capsys.readouterr().err


def test_what_a_person_has_changed_meanwhile_is_kept(path):
    with pytest.raises(KeyError, match="stopped"):
        _end(path, ["seeds=[2]"], KeyError("stopped"), BEFORE.replace("seeds: [1]", "seeds: [5]"))
    assert load_params().seeds == [5] and not NOTE.exists()


def test_changes_that_are_no_settings_change_nothing(path):
    with pytest.raises(UserError, match="train.lr is 'fast'"), alone(path, ["seeds=[2]", "train.lr=fast"]):
        pass
    assert path.read_text() == BEFORE and not NOTE.exists()


def test_a_flow_waits_for_the_one_before_and_after_a_kill_starts_from_the_settings_before_it(path, start):
    first = start("train.lr=0.5")
    assert "lr: 0.5" in settings_while_running(first)
    second = start("seeds=[3]")
    assert "another flow is running in" in second.stderr.readline()
    assert "lr: 0.5" in path.read_text(), "the second has changed nothing under the first"
    put_back_left()
    assert "lr: 0.5" in path.read_text(), "nor is anything put back under it"
    first.kill()
    assert settings_while_running(second) == BEFORE.replace("seeds: [1]", "seeds: [3]")
    assert "an earlier flow was killed: params.yaml is again as it was before" in second.communicate()[1]
    assert second.returncode == 0
    assert path.read_text() == BEFORE.replace("seeds: [1]", "seeds: [3]")


def test_a_killed_flows_settings_are_put_back_by_the_next_command_that_asks(path, start):
    killed = start("train.lr=0.5")
    settings_while_running(killed)
    killed.kill()
    killed.wait()
    put_back_left()
    assert path.read_text() == BEFORE and not NOTE.exists()
