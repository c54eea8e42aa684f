"""Training and evaluation on a cluster of two nodes that share nothing but an S3-compatible store for checkpoints."""

import itertools
import shlex
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.processes import PATIENCE, command_of, processes_with, wait_until
from tests.support.s3 import BUCKET, s3_store
from tests.support.two_nodes import HEAD, POSSIBLE, two_nodes
from tests.support.workspace import BIN, make_workspace, prepare_digits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="network namespaces need root and iproute2"),
    pytest.mark.timeout(1800),  # they wait for one another
]
RUN = ["--dataset", "digits", "--method", "mmrlpp", "--shots", "2", "--seed", "1"]
MMRL = str(BIN / "mmrl")
QUICK = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
EPOCHS = 6


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Prepared data, and what one process trains and evaluates."""
    folder = make_workspace(tmp_path_factory.mktemp("project"), methods=["mmrlpp"], shots=[2], seeds=[1],
                            train={"epochs": EPOCHS}, search={"enabled": False})  # fmt: skip
    more = (["tune", *RUN[:4]], ["train", *RUN], ["evaluate", *RUN, "--out", "here"])
    prepare_digits(folder, *map(shlex.join, more))
    return folder


def start(cluster, project: Path, command: str, *settings: str, out: str) -> subprocess.Popen:
    changes = [part for one in (f"cluster.address={cluster.address}", *settings) for part in ("--set", one)]
    return subprocess.Popen([MMRL, command, *RUN, *changes, "--out", out], cwd=project, env=cluster.environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def until(training: subprocess.Popen, condition, what: str) -> None:
    wait_until(lambda: condition() or training.poll() is not None, PATIENCE, lambda: what)
    assert training.poll() is None, f"ended before {what}: {training.stdout.read()}"


def workers(cluster) -> set[int]:
    return {pid for pid in processes_with(cluster.token) if command_of(pid).startswith("ray::RayTrainWorker")}


def workers_on_second(cluster) -> list[int]:
    return [pid for pid in cluster.second_processes() if command_of(pid).startswith("ray::RayTrainWorker")]


def test_training_survives_its_node_grows_back_and_evaluation_needs_no_data_there(project, tmp_path):
    with s3_store(HEAD) as store, two_nodes(tmp_path, variables=store.environment | QUICK) as cluster:
        where = f"cluster.storage={store.uri('checkpoints')}"
        store.let_in(1)
        training = start(cluster, project, "train", "cluster.workers={min: 1, max: 2}", where, out="elastic")
        refused = start(cluster, project, "train", "cluster.workers=2", "train.lr=0.003", out="refused")
        until(training, lambda: workers_on_second(cluster) and store.waits(2), "both workers and a checkpoint")
        assert "cluster.storage is null, but the cluster has several nodes" in refused.communicate(timeout=PATIENCE)[0]
        before = workers(cluster)
        cluster.end_second()
        until(training, lambda: workers(cluster) - before, "a worker alone")
        store.let_in(3)
        until(training, lambda: store.waits(4) and len(workers(cluster)) == 1, "two checkpoints of one worker")
        assert sorted(store.checkpoints("checkpoints")) == [2, 3]
        cluster.start_second(1)
        until(training, lambda: workers_on_second(cluster), "a worker on the node that came back")
        store.let_in(EPOCHS)
        finished(training)
        assert not store.checkpoints("checkpoints")  # the run is through
        first = load_file(project / "models/digits/mmrlpp-2shot/seed1/adapter.safetensors")
        second = load_file(project / "elastic/adapter.safetensors")
        assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5

        for path in (project / "data").rglob("*.tar"):
            store.client.upload_file(str(path), BUCKET, str(path.relative_to(project)))
        outs = {"there": [], "by_url": [f"cluster.data=s3://{BUCKET}/data"]}
        for one in [start(cluster, project, "evaluate", *settings, out=out) for out, settings in outs.items()]:
            finished(one)
        for out, name in itertools.product(outs, ("metrics.json", "predictions.parquet")):
            assert (project / "here" / name).read_bytes() == (project / out / name).read_bytes()


@pytest.mark.endurance
def test_two_trainings_side_by_side_have_a_node_each(project, tmp_path):
    with s3_store(HEAD) as store, two_nodes(tmp_path, variables=store.environment | QUICK) as cluster:
        where = f"cluster.storage={store.uri('checkpoints')}"
        store.let_in(1)
        runs = [start(cluster, project, "train", where, f"train.lr={lr}", out=str(lr)) for lr in (0.001, 0.002)]
        until(runs[0], lambda: store.waits(2, trainings=2), "runs side by side")
        until(runs[0], lambda: len(workers(cluster)) == 2 and workers_on_second(cluster), "a worker on each node")
        store.let_in(EPOCHS)
        for one in runs:
            finished(one)
