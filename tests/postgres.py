"""A PostgreSQL server of a test's own, on loopback, gone with the block."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.processes import PATIENCE, wait_until

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))  # where Debian and Ubuntu put it
PASSWORD = "of-the-superuser"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def postgres(host: str = "127.0.0.1") -> Iterator[int]:
    """The port of a server whose superuser is `postgres`; passwords are asked for over TCP, not on the socket."""
    with _folder() as folder:
        _initdb(folder)
        port = free_port()
        options = [f"--listen_addresses={host}", f"--unix_socket_directories={folder}", "--fsync=off"]
        with (folder / "log").open("w") as log:
            command = [program("postgres"), "-D", folder / "data", "-p", str(port), *options]
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **_unprivileged())
        try:
            wait_until(lambda: _answers(host, port), PATIENCE, lambda: (folder / "log").read_text())
            yield port
        finally:
            server.send_signal(signal.SIGINT)  # ends its sessions
            server.wait(timeout=PATIENCE)


def create_database(port: int, name: str) -> str:
    """An empty database; its URI."""
    command = [program("createdb"), "--host=127.0.0.1", f"--port={port}", "--username=postgres", name]
    subprocess.run(command, env=os.environ | {"PGPASSWORD": PASSWORD}, check=True)
    return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/{name}"


def program(name: str) -> Path:
    return INSTALLED[-1].with_name(name)


def psql(port: int, script: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a script as the image's entrypoint does."""
    command = [program("psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file={script}"]
    where = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGPASSWORD": PASSWORD}
    return subprocess.run(command, env=os.environ | where | environment, capture_output=True, text=True)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Not below pytest's own, which an unprivileged user cannot enter."""
    folder = Path(tempfile.mkdtemp(prefix="mmrl-postgres-", dir="/tmp"))
    try:
        if "user" in _unprivileged():
            shutil.chown(folder, "postgres")
        yield folder
    finally:
        shutil.rmtree(folder)


def _initdb(folder: Path) -> None:
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    command = [program("initdb"), "--pgdata", folder / "data", "--username=postgres", "--auth-host=scram-sha-256",
               "--auth-local=trust", f"--pwfile={folder / 'password'}", "--no-sync", "--encoding=UTF8"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **_unprivileged())


def _unprivileged() -> dict:
    """PostgreSQL refuses to be root."""
    if os.geteuid():
        return {}
    account = pwd.getpwnam("postgres")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _answers(host: str, port: int) -> bool:
    command = [program("pg_isready"), "--quiet", f"--host={host}", f"--port={port}"]
    return subprocess.run(command).returncode == 0
