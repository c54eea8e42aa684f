"""The servers that are compared: how each is started, asked and ended, and the memory of all its processes."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from mmrl_core.export import export_onnx
from tests.support import serving
from tests.support.clients.connection import request
from tests.support.clients.resources import megabytes
from tests.support.postgres import free_port
from tests.support.processes import PATIENCE, TOKEN, end_all, wait_until
from tests.support.serving import URI, in_base64, picture
from tests.support.workspace import BIN, ROOT, environment

OURS, TWO, MLFLOW, PLAIN, LIT, BEFORE = "mmrl serve", "with replicas=2", "mlflow", "FastAPI", "LitServe", "before"
PICTURES = 50  # that the questions take in turn


class Server(NamedTuple):
    """A command, with the port where it says PORT, and what it is started with."""

    name: str
    command: Sequence[object]
    folder: Path
    variables: dict[str, str]
    path: str = "/predict"

    def body(self, image: bytes) -> dict[str, Any]:
        if self.path == "/invocations":
            return {"dataframe_split": {"columns": ["image"], "data": [[in_base64(image)]]}}
        return {"image": in_base64(image)}

    def questions(self) -> list[bytes]:
        return [request(self.path, self.body(picture(seed))) for seed in range(PICTURES)]


class Running(NamedTuple):
    """A server that answers. `start` is the time in seconds from its start to its first answer."""

    server: Server
    port: int
    token: str
    start: float
    process: subprocess.Popen

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def questions(self) -> list[bytes]:
        return self.server.questions()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=120)

    def version(self) -> int:
        return self.get("/readyz").json()["model"]["version"]

    def memory(self) -> float:
        """MB of all its processes."""
        return megabytes(self.token)


def ours(
    folder: Path, *options: str, source: Path = ROOT, name: str = OURS, uri: str = URI, **variables: str
) -> Server:
    """`mmrl serve` of a checkout, over the store in `folder`."""
    own = folder / name.replace(" ", "-")
    own.mkdir(exist_ok=True)
    shutil.copy(source / "params.yaml", own)
    settings = [part for option in options for part in ("--set", option)]
    command = [BIN / "mmrl", "serve", "--model", uri, "--port", "PORT", "--json", *settings]
    return Server(name, command, own, {"PYTHONPATH": str(source), **store(folder), **variables})


def store(folder: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}


def peers(folder: Path) -> Iterator[Server]:
    """MLflow's scoring server with one worker, a plain FastAPI, LitServe where it can be installed."""
    command = [BIN / "mlflow", "models", "serve", "-m", URI, "--env-manager", "local", "-w", 1, "-p", "PORT"]
    path = {"PYTHONPATH": str(ROOT)}
    yield Server(MLFLOW, command, folder, path | store(folder), "/invocations")
    model = folder / "onnx"
    if not model.exists():
        export_onnx(serving.predictor(1), model)
    yield uvicorn(PLAIN, "plain", folder, MODEL=str(model))
    if python := lit_python(folder / "lit"):
        yield Server(LIT, [python, ROOT / "benchmarks/serving/lit.py", "PORT"], folder, {"MODEL": str(model)})


def uvicorn(name: str, module: str, folder: Path, **variables: str) -> Server:
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.serving.{module}:app", "--port", "PORT", "--log-level",
               "warning"]  # fmt: skip
    return Server(name, command, folder, {"PYTHONPATH": str(ROOT), **variables})


def lit_python(folder: Path) -> Path | None:
    """The interpreter of an environment with LitServe; None, and a line, where that cannot be had."""
    python = folder / "bin/python"
    if not python.exists():
        uv = [str(BIN / "uv"), "--quiet", "--system-certs"]
        packages = ["litserve", "onnxruntime", "pillow", "numpy"]
        for command in (["venv", "--python", sys.executable, str(folder)],
                        ["pip", "install", "--python", str(python), *packages]):  # fmt: skip
            done = subprocess.run([*uv, *command], capture_output=True, text=True)
            if done.returncode:
                print(f"LitServe is left out: it cannot be installed ({' '.join(done.stderr.split())[:200]})")
                shutil.rmtree(folder, ignore_errors=True)
                return None
    return python


@contextlib.contextmanager
def running(server: Server) -> Iterator[Running]:
    """The server, from its first good answer on; all of its processes end with the block."""
    port, token = free_port(), uuid.uuid4().hex
    command = [str(port) if part == "PORT" else str(part) for part in server.command]
    log = server.folder / "server.log"
    with log.open("w") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=server.folder, stdout=output, stderr=output,
                                   env=environment() | server.variables | {TOKEN: token})  # fmt: skip
    url, question = f"http://127.0.0.1:{port}{server.path}", server.body(picture(0))

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(httpx.HTTPError):
            return httpx.post(url, json=question, timeout=60).status_code == 200
        return False

    try:
        wait_until(answers, PATIENCE, lambda: f"{server.name}: {log.read_text()[-3000:]}")
        yield Running(server, port, token, time.perf_counter() - began, process)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        end_all(token)


def threads(number: int) -> dict[str, str]:
    """The variables of a server that may compute with so many threads."""
    return {"OMP_NUM_THREADS": str(number or os.cpu_count() or 1)}
