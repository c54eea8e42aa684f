"""Training by Ray Train's workers on this machine: the one process's adapter, and after any kill the unbroken run's."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import uuid
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import PATIENCE, TOKEN, command_of, end_all, processes_with, wait_until
from tests.workspace import BIN, environment, make_workspace, prepare_digits, run

pytestmark = pytest.mark.slow
RUN = ["--dataset", "digits", "--method", "mmrlpp", "--shots", "2", "--seed", "1"]
TRAIN = [str(BIN / "mmrl"), "train", *RUN]
EPOCHS = 6
MARK = 123.0


def on(workers: str, out: str) -> list[str]:
    return [*TRAIN, "--set", f"cluster.workers={workers}", "--set", "cluster.cpus_per_worker=0.5", "--out", out]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Prepared data, and adapters trained by one process and by two workers."""
    folder = make_workspace(tmp_path_factory.mktemp("project"), methods=["mmrlpp"], shots=[2], seeds=[1],
                            train={"epochs": EPOCHS}, search={"enabled": False})  # fmt: skip
    more = (["mmrl", "tune", *RUN[:4]], TRAIN, on("2", "two"))
    prepare_digits(folder, *(shlex.join(command[1:]) for command in more))
    return folder


def difference(one: Path, two: Path) -> float:
    first, second = (load_file(folder / "adapter.safetensors") for folder in (one, two))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def losses(folder: Path) -> list[float]:
    return [epoch["loss"] for epoch in json.loads((folder / "adapter.json").read_text())["history"]]


def test_two_workers_train_what_one_process_trains(project):
    alone = project / "models/digits/mmrlpp-2shot/seed1"
    assert difference(alone, project / "two") < 1e-5
    assert losses(project / "two") == pytest.approx(losses(alone), rel=1e-5)


@contextlib.contextmanager
def training(project: Path, workers: str, out: str):
    token = uuid.uuid4().hex
    process = subprocess.Popen(on(workers, out), cwd=project, env={**environment(), TOKEN: token},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    try:
        yield process, token
    finally:
        end_all(token)
        process.communicate()


def checkpoints(project: Path) -> set[str]:
    return {path.parent.name for path in (project / ".mmrl/runs").glob("*/checkpoint_*/state.pt")}


def wait_for_checkpoint(project: Path, process, but: set[str] = frozenset()) -> None:
    wait_until(lambda: checkpoints(project) - but or process.poll() is not None, PATIENCE, lambda: "a checkpoint")
    assert process.poll() is None, process.stdout.read()


def train_workers(token: str) -> list[int]:
    return [pid for pid in processes_with(token) if command_of(pid).startswith("ray::RayTrainWorker")]


def test_a_killed_worker_and_then_a_killed_driver_cost_no_bit(project):
    with training(project, "2", "killed") as (process, token):
        wait_for_checkpoint(project, process)
        os.kill(train_workers(token)[0], signal.SIGKILL)
        wait_for_checkpoint(project, process, but=checkpoints(project))
        wait_until(lambda: len(checkpoints(project)) <= 2, 20, lambda: "the older ones to go")
        process.kill()
        process.wait()
        wait_until(lambda: not processes_with(token), 30, lambda: "the end of its cluster")
    assert not (project / "killed").exists() and checkpoints(project)
    run(project, *on("2", "killed"))
    assert difference(project / "two", project / "killed") == 0 and losses(project / "two") == losses(
        project / "killed"
    )
    assert not checkpoints(project)  # the run is through


def test_a_damaged_checkpoint_costs_one_epoch_and_not_the_run(project):
    with training(project, "2", "damaged") as (process, token):
        wait_until(
            lambda: len(checkpoints(project)) == 2 or process.poll() is not None, PATIENCE, lambda: "two checkpoints"
        )
        process.kill()
        process.wait()
        wait_until(lambda: not processes_with(token), 30, lambda: "the end of its cluster")
    *_, older, newest = sorted((project / ".mmrl/runs").glob("*/checkpoint_*/state.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    state = torch.load(older, weights_only=True)
    state["history"][0]["loss"] = MARK
    torch.save(state, older)
    run(project, *on("2", "damaged"))
    assert difference(project / "two", project / "damaged") == 0
    assert losses(project / "damaged") == [MARK, *losses(project / "two")[1:]]  # it went on from the older one


def test_a_run_killed_on_two_workers_ends_on_three_where_one_process_would(project):
    with training(project, "2", "moved") as (process, token):
        wait_for_checkpoint(project, process)
        process.kill()
        process.wait()
        wait_until(lambda: not processes_with(token), 30, lambda: "the end of its cluster")
    run(project, *on("3", "moved"))
    assert difference(project / "models/digits/mmrlpp-2shot/seed1", project / "moved") < 1e-5


def test_a_shard_whose_process_is_killed_is_scored_again(project):
    command, token = [str(BIN / "mmrl"), "evaluate", *RUN], uuid.uuid4().hex
    run(project, *command, "--out", "here")
    command += ["--set", "cluster.workers=2", "--out", "killed-task"]
    evaluation = subprocess.Popen(command, cwd=project, env={**environment(), TOKEN: token}, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def scoring() -> list[int]:
        return [pid for pid in processes_with(token) if command_of(pid).startswith("ray::_score_shard")]

    try:
        wait_until(lambda: scoring() or evaluation.poll() is not None, PATIENCE, lambda: "a task")
        os.kill(scoring()[0], signal.SIGKILL)
        said, _ = evaluation.communicate(timeout=PATIENCE)
    finally:
        end_all(token)
    assert evaluation.returncode == 0, said
    for name in ("metrics.json", "predictions.parquet"):
        assert (project / "here" / name).read_bytes() == (project / "killed-task" / name).read_bytes()


def test_more_workers_than_a_batch_has_images_are_refused_in_one_line(project):
    said = run(project, *on("9", "never"), "--set", "cluster.cpus_per_worker=0.2", check=False)
    assert said.returncode == 2 and "9 workers cannot share 4 images a batch; lower cluster.workers" in said.stderr
