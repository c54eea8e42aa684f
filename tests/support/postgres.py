"""A PostgreSQL server of a test's own, on loopback, gone with the block."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions

from tests.support.processes import PATIENCE, wait_until

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
            server.send_signal(signal.SIGQUIT)  # at once: nobody reads its files again
            server.wait(timeout=PATIENCE)


def create_database(port: int, template: str | None = None) -> str:
    """The URI of a database of its own: empty, or a copy of the one that is named."""
    name = f"test_{uuid.uuid4().hex}"
    command = [program("createdb"), "--host=127.0.0.1", f"--port={port}", "--username=postgres", name]
    command += [f"--template={template}"] if template else []
    subprocess.run(command, env=os.environ | {"PGPASSWORD": PASSWORD}, check=True)
    return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/{name}"


def copies(port: int, fill: Callable[[str], object]) -> Callable[[], str]:
    """Makes databases like the one that `fill` made of an empty one: making tables takes seconds, copying them none."""
    first: list[str] = []

    def copy() -> str:
        if not first:
            uri = create_database(port)
            fill(uri)
            shut(uri)  # one that is in use cannot be copied
            first.append(uri.rpartition("/")[2])
        return create_database(port, first[0])

    return copy


def shut(uri: str) -> None:
    """Let nobody into this database, and throw out who is in it."""
    name = uri.rpartition("/")[2]
    _sql(uri, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    _sql(uri, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")


def drop(uri: str) -> None:
    """Whoever is in it."""
    _sql(uri, f"DROP DATABASE {uri.rpartition('/')[2]} WITH (FORCE)")


def open_again(uri: str) -> None:
    _sql(uri, f"ALTER DATABASE {uri.rpartition('/')[2]} ALLOW_CONNECTIONS true")


def _sql(uri: str, statement: str) -> None:
    """By the superuser, from another database of the same server."""
    with cursor(f"{uri.rpartition('/')[0]}/postgres") as server:
        server.execute(statement)


@contextlib.contextmanager
def cursor(uri: str) -> Iterator[psycopg2.extensions.cursor]:
    """Of a connection that commits each statement."""
    with contextlib.closing(psycopg2.connect(uri)) as connection:
        connection.autocommit = True
        yield connection.cursor()


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
