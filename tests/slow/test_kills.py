"""`dvc repro`, or the stage itself, killed at chosen moments: no child survives, nothing is half-written, and the rerun
ends with the bits of an unbroken run."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from itertools import starmap
from pathlib import Path

import pytest
import yaml

from tests.support.hold import Hold
from tests.support.processes import TOKEN, command_of, end_all, processes_with, wait_until
from tests.support.workspace import environment, run

pytestmark = pytest.mark.slow

ADAPTER = Path("models/digits/mmrl-4shot/seed1/adapter.safetensors")
METRICS = Path("results/digits-to-digits/mmrl-4shot/seed1/metrics.json")
PREDICTIONS = METRICS.with_name("predictions.parquet")
SEARCH = Path("results/digits/search/mmrl.json")
OUTPUTS = [Path("data/digits/pool"), SEARCH, ADAPTER.parent, METRICS]


@pytest.fixture
def unbroken(adapted) -> Path:
    return adapted[0]


def stage_process(token: str, stage: str) -> int | None:
    """The process of `mmrl STAGE`, told from dvc's and the shell's by its interpreter."""
    for pid in processes_with(token):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(command) > 2 and command[1].endswith(b"/mmrl") and command[2] == stage.encode():
            return pid
    return None


def is_whole(path: Path, unbroken: Path) -> bool:
    """Absent, or the same files as an unbroken run's; figures of time apart."""
    if not path.exists():
        return True
    if path.is_file():
        return path.read_bytes().endswith(b"}\n")
    return sorted(os.listdir(path)) == sorted(os.listdir(unbroken))


def commands_with(token: str) -> list[str]:
    """The command lines of those processes."""
    return [command_of(pid) for pid in processes_with(token)]


# When to kill: the stage under way, the file that it is about to write, and what the rerun is to rebuild.
MOMENTS = {
    "shards half-written": ("prepare", ".mmrl/aside/*-novel-*.tar", ["prepare", "prepare_pool"]),
    "search under way": ("tune", "*/.mmrl/searches/*/trials/*", ["tune"]),
    "first checkpoint kept": ("train", "*/.mmrl/runs/*/.checkpoint-00000002-*", ["train"]),
    "evaluation begun": ("evaluate", "*/.mmrl/aside/*/seed1/.metrics.json.*", ["evaluate"]),
}
TERM, KILL = signal.SIGTERM, signal.SIGKILL
CASES = [
    ("shards half-written", "stage", TERM), ("first checkpoint kept", "dvc", KILL), ("evaluation begun", "stage", KILL),
]  # fmt: skip
MORE_CASES = [
    ("shards half-written", "dvc", KILL), ("search under way", "dvc", KILL), ("search under way", "stage", KILL),
    ("first checkpoint kept", "dvc", TERM), ("first checkpoint kept", "stage", TERM),
    ("first checkpoint kept", "stage", KILL), ("evaluation begun", "dvc", TERM),
]  # fmt: skip


def case(moment: str, victim: str, kill: signal.Signals, *marks: pytest.MarkDecorator):
    return pytest.param(moment, victim, kill, marks=marks, id=f"{moment}, {victim}, {kill.name}")


@pytest.mark.parametrize(
    ("moment", "victim", "kill"), [*starmap(case, CASES), *(case(*one, pytest.mark.endurance) for one in MORE_CASES)]
)
def test_a_kill_leaves_no_child_and_no_half_and_the_rerun_ends_with_the_same_bits(
    unbroken, tmp_path, moment, victim, kill
):
    stage, file, targets = MOMENTS[moment]
    hold = Hold(tmp_path / "hold", file)
    folder, token = tmp_path / "project", uuid.uuid4().hex
    keep_done(unbroken, folder, before=stage)
    command = [sys.executable, "-m", "dvc", "repro", *targets]
    variables = {**environment(), **hold.environment, TOKEN: token}
    variables["SHELL"] = "/bin/sh"  # often one that stays beside the stage
    dvc = subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        hold.wait(dvc)
        os.kill(dvc.pid if victim == "dvc" else stage_process(token, stage), kill)
        dvc.wait(30)
        wait_until(lambda: not processes_with(token), 20, lambda: f"the end of {commands_with(token)}")
    finally:
        end_all(token)
    for path in OUTPUTS:
        assert is_whole(folder / path, unbroken / path), path
    run(folder, *command)
    for path in must_be_equal(folder):
        assert (folder / path).read_bytes() == (unbroken / path).read_bytes(), path
    assert not list((folder / ".mmrl/aside").iterdir())


def must_be_equal(folder: Path) -> list[Path]:
    """Files that must come out the same to the bit: shards, manifests, search, adapter and evaluation."""
    files = [path.relative_to(folder) for path in (folder / "data").rglob("*") if path.is_file()]
    assert len(files) == 12
    return files + [path for path in (SEARCH, ADAPTER, METRICS, PREDICTIONS) if (folder / path).exists()]


ORDER = ["fingerprint", "training", "prepare_pool", "prepare", "tune", "train", "fit_baselines", "evaluate",
         "evaluate_baselines", "summarize"]  # fmt: skip
OUTPUTS_OF = {
    "fingerprint": [], "training": [], "prepare_pool": ["data/digits/pool"], "prepare": ["data/digits/4shot-seed1"],
    "tune": ["results/digits/search"], "train": ["models/digits/mmrl-4shot"],
    "fit_baselines": ["models/digits/baselines-4shot"], "evaluate": ["results/digits-to-digits/mmrl-4shot"],
    "evaluate_baselines": ["results/digits-to-digits/baselines-4shot"], "summarize": ["reports"],
}  # fmt: skip


def keep_done(unbroken: Path, folder: Path, before: str) -> None:
    """A copy of the finished project without what `before` and all later stages made, or DVC remembers of them."""
    shutil.copytree(unbroken, folder, symlinks=True)
    shutil.rmtree(folder / ".mmrl")
    shutil.rmtree(folder / ".dvc" / "cache" / "runs")
    undone = ORDER[ORDER.index(before) :]
    for path in (path for stage in undone for path in OUTPUTS_OF[stage]):
        shutil.rmtree(folder / path)
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    lock["stages"] = {name: stage for name, stage in lock["stages"].items() if name.partition("@")[0] not in undone}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
