"""Servers of tests on loopback: Prefect's server and worker, MLflow's. Each ends with its block, whatever happens."""

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.support.postgres import free_port
from tests.support.processes import PATIENCE, TOKEN, end_all, wait_until

QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


@contextlib.contextmanager
def running(command: list[str], log: Path, ready: Callable[[], bool], **popen) -> Iterator:
    """A process in a session of its own, once it is ready; its group is killed at the end. Its output is in `log`."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **popen)

    def said() -> str:
        return f"{command}: {log.read_text()[-3000:]}"

    def up() -> bool:
        assert process.poll() is None, said()
        return ready()

    try:
        wait_until(up, PATIENCE, said)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Kill its group at once: what a server would still do for a while, nobody waits for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def prefect_server(folder: Path, database: str | None = None) -> Iterator[str]:
    """The API's URL of a server with its scheduler; a sqlite file in `folder`, or a PostgreSQL URI."""
    folder.mkdir(parents=True, exist_ok=True)
    port, env = free_port(), {**os.environ, **QUIET, "PREFECT_HOME": str(folder)}
    env |= {"PREFECT_SERVER_DATABASE_TIMEOUT": "30", "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
    env.pop("PREFECT_API_URL", None)
    if database:
        env["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "0.5"  # that often, sqlite would be too busy to answer
        env["PREFECT_API_DATABASE_CONNECTION_URL"] = database.replace("postgresql://", "postgresql+asyncpg://")
    url = f"http://127.0.0.1:{port}/api"
    command = module("prefect server start --no-ui --host 127.0.0.1 --port", port)
    with running(command, folder / "server.log", lambda: answers(f"{url}/health"), env=env):
        yield url


@contextlib.contextmanager
def prefect_worker(folder: Path, api: str, pool: str, **env: str) -> Iterator[subprocess.Popen]:
    """A worker of a process pool that looks for runs several times a second; ready when its health page says so."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    own = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": api, "PREFECT_WORKER_QUERY_SECONDS": "0.3",
           "PREFECT_WORKER_WEBSERVER_PORT": str(port), "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1"}  # fmt: skip
    env = {**os.environ, **QUIET, **own, **env}
    command = module("prefect worker start --type process --with-healthcheck --pool", pool)
    ready = partial(answers, f"http://127.0.0.1:{port}/health")
    with running(command, folder / "worker.log", ready, env=env) as process:
        yield process


@contextlib.contextmanager
def mlflow_server(folder: Path, database: str, port: int | None = None, **env: str) -> Iterator[str]:
    """The URL of a tracking server with one worker, its artifacts in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    port, token = port or free_port(), uuid.uuid4().hex
    command = module("mlflow server --workers 1 --host 127.0.0.1 --port", port)
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, **QUIET, "PATH": path, TOKEN: token, **env}
    url = f"http://127.0.0.1:{port}"
    try:
        with running(command, folder / "server.log", lambda: answers(f"{url}/health"), env=env, cwd=folder):
            yield url
    finally:
        end_all(token)  # some of it runs in sessions of its own


def module(words: str, last: object) -> list[str]:
    return [sys.executable, "-m", *words.split(), str(last)]
