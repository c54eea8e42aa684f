"""A real MLflow server, or a PostgreSQL database, that is gone in the middle of a training and comes back."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.project.paths import RunKey
from flows.settings.params import load_params
from flows.stages import train
from flows.tracking import run as tracking_run
from flows.tracking import store as tracking
from tests.support.postgres import free_port, open_again, shut
from tests.support.servers import mlflow_server
from tests.support.workspace import QUICK, make_workspace, prepare_digits

pytestmark = pytest.mark.slow
KEY = RunKey("digits", "mmrl", 2, 1)
FILES = {"adapter.json", "adapter.safetensors", "folded.safetensors"}


class Server:
    """MLflow's, killed with all that it started."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.running = folder, free_port(), ExitStack()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.running.enter_context(mlflow_server(self.folder, "sqlite:///server.db", self.port))

    def stop(self) -> None:
        self.running.close()


class Database:
    """One of PostgreSQL that lets nobody in and throws out who is."""

    def __init__(self, uri: str):
        self.uri = uri

    def start(self) -> None:
        open_again(self.uri)

    def stop(self) -> None:
        shut(self.uri)


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    server = Server(tmp_path)
    with server.running:
        yield server


@pytest.fixture
def database(mlflow_database) -> Database:
    return Database(mlflow_database())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = make_workspace(tmp_path_factory.mktemp("project"), **QUICK, shots=[2])
    prepare_digits(folder, "tune --dataset digits --method mmrl")
    return folder


@pytest.fixture(params=["server", "database"])
def store(request) -> Server | Database:
    return request.getfixturevalue(request.param)


def test_what_a_store_missed_of_a_training_is_there_when_it_comes_back(prepared, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "project"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    epochs, log_metrics = [], tracking_run.Tracked.log_metrics

    def at_epoch(run, metrics, step=0):
        if not epochs:
            store.stop()
        log_metrics(run, metrics, step)
        if not epochs:
            store.start()
        epochs.append(step)

    monkeypatch.setattr(tracking_run.Tracked, "log_metrics", at_epoch)
    params = load_params("params.yaml", [f"tracking.uri={store.uri}"])
    trained = train.train(params, KEY, tmp_path / "out")
    client = tracking.connect(tracking.store_uri(params))
    [run] = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert len(epochs) == 2 and run.info.status == "FINISHED"
    assert run.data.tags["adapter_sha256"] == trained["adapter_sha256"]
    name = next(iter(run.data.metrics))
    assert [one.step for one in client.get_metric_history(run.info.run_id, name)] == epochs
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == FILES
    assert capsys.readouterr().err.count("warning: this run is not tracked for now") == 1
