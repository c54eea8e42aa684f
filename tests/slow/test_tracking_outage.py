"""A real MLflow server that is killed in the middle of a training and started again."""

import contextlib
import subprocess
import sys
import urllib.request

import pytest

from flows import stages, tracking
from flows.paths import RunKey
from mmrl_core.config import load_params
from tests.flows.conftest import PREPARE, RUN, Shell
from tests.postgres import free_port
from tests.processes import TOKEN, end_all, wait_until
from tests.workspace import QUICK, environment, make_workspace

pytestmark = pytest.mark.slow
KEY = RunKey("digits", "mmrl", 2, 1)


class Server:
    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination", self.folder]
        command = [sys.executable, "-m", "mlflow", "server", *options, *map(str, store)]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment() | {TOKEN: str(self.folder)},
                cwd=self.folder,
                start_new_session=True,
            )
        wait_until(self.answers, 90, (self.folder / "server.log").read_text)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        return False

    def kill(self) -> None:
        """The server and all that it started, some of it in sessions of its own."""
        end_all(str(self.folder))
        self.process.wait()


def test_what_a_killed_server_missed_of_a_training_is_there_when_it_comes_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make_workspace(tmp_path / "project", **QUICK, shots=[2]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mmrl = Shell(capsys, monkeypatch)
    for command in [*PREPARE, ["tune", *RUN[:4]]]:
        mmrl(*command)
    server, epochs = Server(tmp_path), []
    log_metrics = tracking.Tracked.log_metrics

    def at_epoch(run, metrics, step=0):
        if not epochs:
            server.kill()
        log_metrics(run, metrics, step)
        if not epochs:
            server.start()
        epochs.append(step)

    monkeypatch.setattr(tracking.Tracked, "log_metrics", at_epoch)
    try:
        server.start()
        params = load_params("params.yaml", [f"tracking.uri={server.uri}"])
        trained = stages.train(params, KEY, tmp_path / "out")
        client = tracking.connect(server.uri)
        [run] = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
        assert len(epochs) == 2 and run.info.status == "FINISHED"
        assert run.data.tags["adapter_sha256"] == trained["adapter_sha256"]
        name = next(iter(run.data.metrics))
        assert [one.step for one in client.get_metric_history(run.info.run_id, name)] == epochs
        assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"adapter.json", "adapter.safetensors"}
        assert capsys.readouterr().err.count("warning: this run is not tracked for now") == 1
    finally:
        server.kill()
