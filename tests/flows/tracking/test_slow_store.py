"""A store that is slow to take files is waited for; one that answers nothing is not."""

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.project.paths import RunKey
from flows.settings.params import Params
from flows.tracking.run import tracked_run

KEY = RunKey("digits", "mmrl", 16, 1)
EXPERIMENT = {"experiment_id": "1", "name": "digits", "lifecycle_stage": "active"}


class Server(ThreadingHTTPServer):
    """As much of MLflow's as a run with artifacts needs. It takes `seconds` over a file; a `silent` one leaves every
    request open. `asked` has every path that was asked for, `files` what was taken."""

    daemon_threads = True

    def __init__(self, seconds: float):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seconds, self.silent, self.ended = seconds, False, threading.Event()
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {}
        self.uri, run_id = f"http://127.0.0.1:{self.server_port}", uuid.uuid4().hex  # MLflow keeps addresses by run
        artifacts = {"status": "RUNNING", "artifact_uri": f"mlflow-artifacts:/{run_id}"}
        info = {"run_id": run_id, "experiment_id": "1", **artifacts}
        run, self.file = {"run": {"info": info, "data": {}}}, f"mlflow-artifacts/artifacts/{run_id}/adapter.json"
        self.answers = {"runs/create": run, "runs/get": run, "experiments/get-by-name": {"experiment": EXPERIMENT}}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].partition("/api/2.0/")[2].removeprefix("mlflow/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(path)
        if self.server.silent:
            self.server.ended.wait()
            return
        if self.command == "PUT":
            self.server.ended.wait(self.server.seconds)
            self.server.files[path] = body
        answer = json.dumps(self.server.answers.get(path, {})).encode()
        with contextlib.suppress(OSError):  # nobody waits for it any more
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def slow_mlflow(seconds: float) -> Iterator[Server]:
    with Server(seconds) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()


@pytest.fixture
def one_second(tmp_path, monkeypatch):
    """To answer a question, in place of five, and no second attempt."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def params(uri: str) -> Params:
    return Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1], tracking={"uri": uri})


def test_a_store_may_take_longer_over_a_file_than_over_a_question(one_second, capsys):
    Path("adapter.json").write_text("{}")
    with slow_mlflow(seconds=1.5) as server:
        with tracked_run(params(server.uri), KEY, "train", {}) as run:
            run.log_artifacts(".")
        assert (server.files[server.file], server.asked.count(server.file)) == (b"{}", 1)
    assert capsys.readouterr().err == ""
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"  # for questions, again


def test_no_file_is_sent_to_a_store_that_answers_nothing(one_second, capsys):
    Path("adapter.json").write_text("{}")
    with slow_mlflow(seconds=0) as server:
        with tracked_run(params(server.uri), KEY, "train", {}) as run:
            server.silent = True
            run.log_artifacts(".")
            assert server.file not in server.asked
            server.silent = False
        assert server.file in server.asked
    assert capsys.readouterr().err.startswith("warning: this run is not tracked for now")
