import os
import shutil
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.project.paths import RunKey
from flows.settings.params import Params
from flows.tracking import store as tracking
from flows.tracking.run import tracked_run
from mmrl_core.errors import UserError

ROOT = Path(__file__).parents[3]
KEY = RunKey("digits", "mmrl", 16, 1)
SETTINGS = {"adapter": {"n_tokens": 5}, "train.lr": 0.001, "names": ["a" * 9000]}
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(folder, empty_store):
    """The folder's database, its tables made already."""
    shutil.copy(empty_store, folder)


def params(uri: str = "sqlite:///mlflow.db") -> Params:
    return Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1], tracking={"uri": uri})


def read(run):
    return tracking.connect(tracking.store_uri(params())).get_run(run.run_id)


def test_a_run_holds_settings_metrics_artifacts_and_the_datasets_digest(folder):
    (folder / "out").mkdir()
    (folder / "out" / "adapter.json").write_text("{}")
    with tracked_run(params(), KEY, "train", SETTINGS, {"data.digest": DIGEST}) as run:
        run.log_metrics({"loss": 2.0, "base": {"accuracy": 0.5}, "note": "not a number"}, 0)
        run.log_metrics({"loss": 1.0}, 1)
        run.log_artifacts(folder / "out")
        run.set_tags({"adapter_sha256": "abc"})
    found = read(run)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "mmrl-16shot/seed1"
    assert found.data.metrics == {"loss": 1.0, "base.accuracy": 0.5}
    assert found.data.params["adapter.n_tokens"] == "5"
    assert found.data.params["train.lr"] == "0.001"
    assert found.data.params["data.digest"] == DIGEST
    assert found.data.tags.items() >= {"stage": "train", "seed": "1", "adapter_sha256": "abc"}.items()
    [data] = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", DIGEST[:36])
    assert list((folder / "mlartifacts" / "digits").rglob("adapter.json"))
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts", ".mmrl", "out"}


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_exception_ends_the_run_and_passes_through(store, error, status):
    with pytest.raises(error), tracked_run(params(), KEY, "train", {}) as run:
        raise error
    assert read(run).info.status == status


def _closed_port() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))  # and not listening: connections are refused
    return bound


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:secret@127.0.0.1:{port}",
        "sqlite:////proc/nowhere/mlflow.db",
        "sqlite:///garbage.db",
        "nonsense://x",
    ],
)
def test_a_store_that_cannot_be_used_costs_one_warning_but_not_the_stage(uri, folder, capsys, monkeypatch):
    (folder / "garbage.db").write_bytes(b"no database" * 100)
    done = []
    with _closed_port() as server:
        uri = uri.format(port=server.getsockname()[1])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # which params.yaml would refuse where it is none
        with tracked_run(params(), KEY, "train", SETTINGS) as run:
            run.log_metrics({"loss": 1.0}, 0)
            run.log_artifacts(folder)
            done.append("trained")
    captured = capsys.readouterr()
    assert done == ["trained"]
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("warning: this run is not tracked")
    assert "secret" not in captured.err
    assert captured.out == ""


def test_a_server_that_hangs_up_is_asked_twice_each_time(folder, capsys, monkeypatch):
    """MLflow's own eight times take minutes."""
    monkeypatch.setattr("flows.tracking.run.PATIENCE", 0)
    asked = []

    class HangsUp(socketserver.BaseRequestHandler):
        def handle(self):
            asked.append(self.client_address)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangsUp) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            with tracked_run(params(f"http://127.0.0.1:{server.server_address[1]}"), KEY, "train", {}):
                pass
        finally:
            server.shutdown()
    assert capsys.readouterr().err.startswith("warning: this run is not tracked")
    assert len(asked) == 2 * 2  # as the run starts and as it ends


def test_what_a_database_that_breaks_on_the_way_missed_is_there_at_the_end_after_one_warning(folder, store, capsys):
    with tracked_run(params(), KEY, "train", {}) as run, sqlite3.connect(folder / "mlflow.db") as database:
        run.log_metrics({"loss": 2.0}, 0)
        database.execute("alter table metrics rename to hidden")
        run.log_metrics({"loss": 1.0}, 1)
        database.execute("alter table hidden rename to metrics")
        run.log_metrics({"loss": 0.5}, 2)
    database.close()
    assert capsys.readouterr().err.count("\n") == 1
    assert read(run).info.status == "FINISHED"
    losses = tracking.connect(tracking.store_uri(params())).get_metric_history(run.run_id, "loss")
    assert [(one.step, one.value) for one in losses] == [(0, 2.0), (1, 1.0), (2, 0.5)]


def test_the_environment_overrides_the_settings_and_sqlite_paths_become_absolute(folder, monkeypatch):
    assert tracking.store_uri(params()) == f"sqlite:///{folder}/mlflow.db"
    assert tracking.store_uri(params("http://host:5000")) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking.store_uri(params()) == f"sqlite:///{folder}/other.db"


def test_reading_never_creates_a_database(folder):
    with pytest.raises(UserError, match="no MLflow store at"):
        tracking.connect(tracking.store_uri(params()), create=False)
    assert not (folder / "mlflow.db").exists()


FIRST_USE = """
import sys
from flows.tracking import store
store.connect(store.absolute("sqlite:///mlflow.db"))
from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
assert MLFLOW_DISABLE_TELEMETRY.get() and "torch" not in sys.modules
"""


def test_processes_that_use_a_new_database_at_once_take_turns(folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-c", FIRST_USE]
    processes = [subprocess.Popen(start, cwd=folder, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 2
