"""Training by Ray Train's workers on this machine: the one process's adapter, and after any kill the unbroken run's."""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes import PATIENCE, TOKEN, command_of, end_all, processes_with, wait_until
from tests.support.s3 import Store, s3_store
from tests.support.workspace import BIN, IN_TURN, environment, make_workspace, prepare_digits, run

pytestmark = pytest.mark.slow
RUN = ["--dataset", "digits", "--method", "mmrlpp", "--shots", "2", "--seed", "1"]
TRAIN, EVALUATE = ([str(BIN / "mmrl"), command, *RUN] for command in ("train", "evaluate"))
EPOCHS = 5
MARK = 123.0


def on(workers: int, out: str, storage: str = "null") -> list[str]:
    values = {"workers": workers, "cpus_per_worker": 0.5, "storage": storage}
    settings = [part for key, value in values.items() for part in ("--set", f"cluster.{key}={value}")]
    return [*TRAIN, *settings, "--out", out]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Prepared data, adapters trained by one process and by two workers, and the one process's evaluation."""
    folder = make_workspace(tmp_path_factory.mktemp("project"), methods=["mmrlpp"], shots=[2], seeds=[1],
                            train={"epochs": EPOCHS}, search={"enabled": False})  # fmt: skip
    more = (["mmrl", "tune", *RUN[:4]], TRAIN, on(2, "two"), [*EVALUATE, "--out", "here"])
    prepare_digits(folder, *(shlex.join(command[1:]) for command in more))
    return folder


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with s3_store() as store:
        yield store


def difference(one: Path, two: Path) -> float:
    first, second = (load_file(folder / "adapter.safetensors") for folder in (one, two))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [epoch[name] for epoch in json.loads((folder / "adapter.json").read_text())["history"]]


def test_two_workers_train_what_one_process_trains(project):
    alone = project / "models/digits/mmrlpp-2shot/seed1"
    assert difference(alone, project / "two") < 1e-5
    assert losses(project / "two") == pytest.approx(losses(alone), rel=1e-5)
    assert losses(project / "two", "val_nll") == pytest.approx(losses(alone, "val_nll"), rel=1e-3)
    assert not list((project / ".mmrl/runs").glob("*"))  # the run is through


@contextlib.contextmanager
def started(project: Path, command: list[str]) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process, and the token by which it and its cluster are known."""
    token = uuid.uuid4().hex
    process = subprocess.Popen(command, cwd=project, env={**environment(), TOKEN: token},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    try:
        yield process, token
    finally:
        end_all(token)
        process.communicate()


def until(process: subprocess.Popen, condition, what: str) -> None:
    wait_until(lambda: condition() or process.poll() is not None, PATIENCE, lambda: what)
    assert process.poll() is None, process.stdout.read()


def kill(process: subprocess.Popen, token: str) -> None:
    """The driver dies, and its cluster with it."""
    process.kill()
    process.wait()
    wait_until(lambda: not processes_with(token), 30, lambda: "the end of its cluster")


def named(token: str, name: str) -> set[int]:
    return {pid for pid in processes_with(token) if command_of(pid).startswith(f"ray::{name}")}


def marked(content: bytes) -> bytes:
    """A checkpoint with another first loss: what goes on from it shows it."""
    state, buffer = torch.load(io.BytesIO(content), weights_only=True), io.BytesIO()
    state["histories"][0][0]["loss"] = MARK
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.endurance  # tests/slow/test_two_nodes_training.py kills a node, and with it a worker and its checkpoint
def test_a_killed_worker_a_killed_driver_and_a_half_written_checkpoint_cost_no_bit_on_two_workers_or_three(
    project, store
):
    where = store.uri("killed")
    store.let_in(2)
    with started(project, on(2, "killed", where)) as (process, token):
        until(process, lambda: store.waits(3), "two checkpoints")
        workers = named(token, "RayTrainWorker")
        os.kill(min(workers), signal.SIGKILL)
        until(process, lambda: len(named(token, "RayTrainWorker") - workers) == 2, "other workers")
        store.let_in(3)
        until(process, lambda: store.waits(4), "a checkpoint of theirs")
        kill(process, token)
    store.let_in(EPOCHS)
    kept = store.checkpoints("killed")
    assert not (project / "killed").exists() and sorted(kept) == [2, 3]
    newest = marked(store.read(kept[3]))
    run_folder = project / ".mmrl/runs" / Path(kept[3]).parent.name
    run_folder.mkdir(parents=True)
    for epochs, content in {2: store.read(kept[2]), 3: newest}.items():
        (run_folder / Path(kept[epochs]).name).write_bytes(content)
    store.write(kept[3], newest)
    store.write(kept[3].replace("03-", "04-"), newest[:-1000])
    again = [shlex.join(command[1:]) for command in (on(2, "killed", where), on(3, "moved"))]
    run(project, sys.executable, "-c", IN_TURN, *again)

    assert difference(project / "two", project / "killed") == 0
    assert losses(project / "killed") == [MARK, *losses(project / "two")[1:]]
    assert difference(project / "two", project / "moved") < 1e-5
    assert losses(project / "moved") == pytest.approx([MARK, *losses(project / "two")[1:]], rel=1e-5)
    assert not store.checkpoints("killed") and not run_folder.exists()  # the runs are through


@pytest.fixture(scope="module")
def written(project, store) -> dict[int, tuple[str, bytes]]:
    """Every checkpoint of an unbroken training, by epochs: its path below the storage, and its content."""
    store.let_in(EPOCHS)
    run(project, *on(2, "unbroken", store.uri("unbroken")))
    return {epochs: (key.removeprefix("unbroken/"), text) for epochs, (key, text) in store.written("unbroken").items()}


# The oldest first. A third one lies there where the kill came before the oldest was removed.
LEFT = [["whole", "whole"], ["whole", "half"], ["whole", "whole", "whole"], ["whole", "whole", "half"],
        ["whole", "half", "half"]]  # fmt: skip
MOMENTS = [(epoch, left) for left in LEFT for epoch in range(1, EPOCHS - len(left) + 2)]


@pytest.mark.endurance
@pytest.mark.parametrize(("oldest", "left"), MOMENTS, ids=[f"{epoch}-{'-'.join(left)}" for epoch, left in MOMENTS])
def test_whatever_a_kill_leaves_the_newest_whole_checkpoint_is_gone_on_from(project, written, oldest, left):
    for epochs, state in enumerate(left, start=oldest):
        path, content = project / ".mmrl/runs" / written[epochs][0], written[epochs][1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[:-1000] if state == "half" else content)
        if state == "whole":
            newest = path
    newest.write_bytes(marked(newest.read_bytes()))
    out = f"{oldest}-{'-'.join(left)}"
    run(project, *on(2, out))
    assert difference(project / "two", project / out) == 0
    assert losses(project / out) == [MARK, *losses(project / "two")[1:]]


def test_a_shard_whose_process_is_killed_is_scored_again(project):
    with started(project, [*EVALUATE, "--set", "cluster.workers=2", "--out", "killed-task"]) as (evaluation, token):
        until(evaluation, lambda: named(token, "_score_shard"), "a task")
        os.kill(min(named(token, "_score_shard")), signal.SIGKILL)
        said, _ = evaluation.communicate(timeout=PATIENCE)
        assert evaluation.returncode == 0, said
    for name in ("metrics.json", "predictions.parquet"):
        assert (project / "here" / name).read_bytes() == (project / "killed-task" / name).read_bytes()


def test_a_shard_that_is_not_what_it_should_be_fails_the_evaluation_and_is_named(project, tmp_path):
    mirror = tmp_path / "mirror"
    shutil.copytree(project / "data", mirror)
    shard = next((mirror / "digits/pool").glob("test-base-*.tar"))
    shard.write_bytes(b"x" + shard.read_bytes()[1:-512] + bytes(512))
    settings = ["--set", "cluster.workers=2", "--set", f"cluster.data=file://{mirror}"]
    done = run(project, *EVALUATE, *settings, "--out", "never", check=False)
    assert done.returncode == 2 and f"the shard data/digits/pool/{shard.name} could not be scored" in done.stderr
    assert "sha256 differs" in done.stderr and not (project / "never").exists()


def test_more_workers_than_a_batch_has_images_are_refused_in_one_line(project):
    said = run(project, *on(9, "never"), "--set", "cluster.cpus_per_worker=0.2", check=False)
    assert said.returncode == 2 and "9 workers cannot share 4 images a batch; lower cluster.workers" in said.stderr
