"""A process that has imported everything, and forks a child for each request: what runs there starts at once.

It opens no store and starts no thread of its own, so that a child is as a new process would be.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.orm import configure_mappers

from flows.tracking.store import ENVIRONMENT
from mmrl_core.errors import Failed, UserError
from tests.support.processes import PATIENCE, wait_until
from tests.support.workspace import ROOT, environment

ADDRESS, PYTHON = "address", "python"
# What commands import when they need it, and what the check of a bundle takes seconds to import.
COMMANDS = (f"{__package__}.changes", f"{__package__}.commands", "alembic.autogenerate.api", "alembic.command",
            "mlflow.artifacts", "mlflow.models", "mlflow.pyfunc", "mlflow.store.db.utils",
            "mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_store", "pandas",
            "psycopg2", "pyarrow.parquet", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite")  # fmt: skip
CHECKS = ("mmrl_core.bundle",)
# Stands for sys.executable in a child: `python -m MODULE` runs in a child of `checks`, importing nothing.
STAND_IN = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({checks!r})
    request = {{"module": sys.argv[2], "arguments": sys.argv[3:], "folder": os.getcwd()}}
    server.sendall(json.dumps(request).encode() + b"\\n")
    answer = server.makefile().read()
if not answer:
    os.kill(os.getpid(), 9)
code, out, err = json.loads(answer)
sys.stdout.write(out), sys.stderr.write(err), sys.exit(code)
"""


class Killed(Exception):
    """A child ended without an answer."""


class Server:
    """A server's address and log. `ask` may be called by several threads at once."""

    def __init__(self, folder: Path):
        self.address, self.log = str(folder / ADDRESS), folder / "log"
        self.process: subprocess.Popen

    def wait(self) -> None:
        """Until it has imported everything."""
        path, process = Path(self.address), self.process
        wait_until(lambda: path.exists() or process.poll() is not None, PATIENCE, self.log.read_text)
        assert process.poll() is None, self.log.read_text()

    def ask(self, command: str, *arguments: Any, folder: Path, **request: Any) -> Any:
        """What a command of commands.py returns, run in `folder`. Raises Killed, or RuntimeError with its error."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.address)
            document = {"command": command, "arguments": arguments, "folder": str(folder), **request}
            connection.sendall(json.dumps(document).encode() + b"\n")
            answer = connection.makefile().read()
        if not answer:
            raise Killed(self.log.read_text()[-3000:])
        returned, error = json.loads(answer)
        if error:
            raise RuntimeError(error)
        return returned


class _Child(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        os.chdir(request["folder"])
        answer = _run_module(**request) if "module" in request else _run_command(**request)
        self.wfile.write(json.dumps(answer).encode())


def _run_module(module: str, arguments: list[str], folder: str) -> list:
    """Exit status, stdout and stderr of `python -m module`."""
    sys.argv, code = [module, *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
    return [code, out.getvalue(), err.getvalue()]


def _run_command(
    command: str, arguments: list, folder: str, counted: str | None = None, kill_before: int | None = None,
    variables: dict[str, str] = {},
) -> list:  # fmt: skip
    """What the command returned, and its error: one line of the user's, or a traceback. With a folder to be `counted`
    in, the changes that it made instead of what it returned."""
    from tests.support.interruptions.changes import Changes
    from tests.support.interruptions.commands import COMMANDS

    os.environ.update(variables)
    changes = Changes(Path(counted), kill_before) if counted else None
    try:
        returned = COMMANDS[command](*arguments)
    except (UserError, Failed) as error:
        return [None, f"{type(error).__name__}: {error}"]
    except Exception:
        return [None, traceback.format_exc()]
    return [changes.made if changes else returned, None]


class _Forking(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.parent:  # which asks no more
            os._exit(0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        traceback.print_exc()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server of commands, which has another one for the checks of bundles; both end with the block."""
    with _started(CHECKS) as checks, _started(COMMANDS, checks) as server:
        checks.wait()
        server.wait()
        yield server


@contextlib.contextmanager
def _started(modules: tuple[str, ...], checks: Server | None = None) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="mmrl-fork-", dir="/tmp"))  # the path of a socket is short
    server = Server(folder)
    (folder / PYTHON).write_text(STAND_IN.format(python=sys.executable, checks=checks and checks.address))
    (folder / PYTHON).chmod(0o755)
    variables = {key: value for key, value in environment().items() if key != "MLFLOW_TRACKING_URI"}
    variables |= {**ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # MLflow reads its own on import
    command = [sys.executable, "-m", __name__, str(folder), str(os.getpid()), *modules]
    with server.log.open("w") as log:
        server.process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(PATIENCE)
        shutil.rmtree(folder)


def main(folder: Path, parent: int, *modules: str) -> None:
    for module in modules:
        importlib.import_module(module)
    configure_mappers()
    gc.freeze()  # a collection in a child would copy every page
    sys.executable = str(folder / PYTHON)
    _Forking.parent = parent
    with _Forking(str(folder / ADDRESS), _Child) as server:
        server.serve_forever(poll_interval=5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
