"""Prefect's settings of this project, and the process of a server of its own; nothing here imports Prefect.

So the server can start while Prefect is imported: each takes seconds.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import time
import tomllib
import urllib.request
from pathlib import Path
from typing import NamedTuple

from flows.processes.lifeline import Lifeline
from flows.project import paths
from mmrl_core.errors import UserError

CORES = os.cpu_count() or 1
SIDE_BY_SIDE = "PREFECT_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS"
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # none is used, and that takes a start's tenth
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_HOME": str((paths.STATE / "prefect").resolve()),
    SIDE_BY_SIDE: str(min(4, CORES)),  # how many items run at a time
    "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "[2, 10]",
}
# Environment variables by which Prefect may be told of another server.
VARIABLES = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
PATIENCE = 120  # seconds until a server has started


def apply_settings() -> None:
    """Set what Prefect reads when it is imported, where it is not set yet, and make the folder PREFECT_HOME: Prefect
    itself does not make the folders above it."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


def is_set_up_otherwise() -> bool:
    """Whether Prefect may be told of another server: by one of VARIABLES, or by a file that it reads."""
    if any(value and name.upper() in VARIABLES for name, value in os.environ.items()):
        return True
    home = Path(os.environ.get("PREFECT_HOME", paths.STATE / "prefect"))
    if Path("prefect.toml").exists() or (home / "profiles.toml").exists():
        return True
    dotenv, pyproject = (path.read_bytes() if path.exists() else b"" for path in (Path(".env"), Path("pyproject.toml")))
    return b"PREFECT" in dotenv.upper() or _names_prefect(pyproject)


def _names_prefect(pyproject: bytes) -> bool:
    try:
        return "prefect" in tomllib.loads(pyproject.decode()).get("tool", {})
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"pyproject.toml, which Prefect reads, cannot be read as TOML ({error}); correct it") from None


class Server(NamedTuple):
    """A server of this process's own, which may still be starting."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> None:
        """Wait until it answers. Raises RuntimeError where it does not start."""
        deadline = time.monotonic() + PATIENCE
        while not answers(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Prefect server did not start; its output is in {self.log}")
            time.sleep(0.1)


_begun: list[Server] = []


def begin_server() -> Server:
    """Start a server of this process's own, or return the one that was started before. One that Prefect starts itself
    would outlive a killed flow.

    It ends with this process, after the flow: Prefect sends the last events and log lines when the process exits.
    """
    if _begun:
        return _begun[0]
    apply_settings()
    port, log = _free_port(), Path(os.environ["PREFECT_HOME"]) / "server.log"
    lifeline, output = Lifeline(), log.open("w")
    argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = lifeline.start(*argv, "--no-ui", "--no-scheduler", "--no-late-runs", stdout=output, stderr=output)
    atexit.register(_stop, process, lifeline)
    _begun.append(Server(f"http://127.0.0.1:{port}/api", process, log))
    return _begun[0]


def _stop(process: subprocess.Popen[bytes], lifeline: Lifeline) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=5)
    lifeline.close()


def answers(url: str) -> bool:
    """Whether a Prefect server answers at this URL of its API."""
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
