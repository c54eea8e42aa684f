"""Prefect's settings of this project, and the server that a flow without one runs on."""

import atexit
import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

CORES = os.cpu_count() or 1
SIDE_BY_SIDE = "PREFECT_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS"
for name, value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_HOME": str(Path(".mmrl/prefect").resolve()),
    SIDE_BY_SIDE: str(min(4, CORES)),  # how many items run at a time
    "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "[2, 10]",
}.items():
    os.environ.setdefault(name, value)

# Prefect makes its home when it is imported, but not the folders above it.
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)

from prefect.context import refresh_global_settings_context  # noqa: E402
from prefect.logging.handlers import PrefectConsoleHandler  # noqa: E402
from prefect.settings import PREFECT_API_URL  # noqa: E402

from flows.dvc_graph import Lifeline  # noqa: E402
from mmrl_core.errors import UserError  # noqa: E402


def running_server() -> str | None:
    """What PREFECT_API_URL names, if anything. Raises UserError when it does not answer."""
    url = PREFECT_API_URL.value()
    if url and not _answers(url):
        raise UserError(f"PREFECT_API_URL={url} does not answer; start that server, or unset it to run without one")
    return url


def ensure_server() -> None:
    """The server that PREFECT_API_URL names, or else one of this process's own; Prefect's lines leave the console."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.CRITICAL)
    if not running_server():
        start_server()


def start_server() -> None:
    """Give this process a Prefect server of its own. The one that Prefect itself would start outlives a killed flow.

    It outlasts the flow, since Prefect sends the last events and log lines when the process exits; its threads see the
    environment only.
    """
    url, log = f"http://127.0.0.1:{_free_port()}", Path(os.environ["PREFECT_HOME"]) / "server.log"
    lifeline, output = Lifeline(), log.open("w")
    argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    process = lifeline.start(*argv, "--no-ui", "--no-scheduler", "--no-late-runs", stdout=output, stderr=output)
    atexit.register(_stop, process, lifeline)
    deadline = time.monotonic() + 120
    while not _answers(url + "/api"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the Prefect server did not start; its output is in {log}")
        time.sleep(0.1)
    os.environ["PREFECT_API_URL"] = url + "/api"
    refresh_global_settings_context()


def _stop(process: subprocess.Popen, lifeline: Lifeline) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=5)
    lifeline.close()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
