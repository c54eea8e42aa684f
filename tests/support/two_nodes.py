"""A real Ray cluster of two nodes on this machine: a network namespace for the second one, and a mount namespace in
which it sees neither this repository nor the data, nor the first node's /tmp. Needs root and `ip`.

The nodes share the installed packages, by a bind mount of the virtual environment. Token authentication is on.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from tests.support.processes import PATIENCE, TOKEN, end_all, processes_with, wait_until
from tests.support.workspace import ROOT, environment

HEAD, SECOND, PORT = "10.213.7.1", "10.213.7.2", 6399
POSSIBLE = os.geteuid() == 0 and shutil.which("ip") is not None
VENV = "/mnt/venv"  # where the second node sees the virtual environment
RAY = ["-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]

# Hide the repository, the data and /tmp, then become the second node.
ENTER = f"""
mount -t tmpfs tmpfs /mnt && mkdir {VENV} && mount --bind {sys.prefix} {VENV}
for hidden in "$@"; do mount -t tmpfs tmpfs "$hidden"; done
cd / && exec {VENV}/bin/python {" ".join(RAY)} --address={HEAD}:{PORT} --node-ip-address={SECOND} --num-cpus=$CPUS
"""


class Cluster:
    """`environment` is what a driver on the head node needs; `end_second` kills the second node outright."""

    address = f"{HEAD}:{PORT}"

    def __init__(self, folder: Path, variables: dict[str, str]):
        self.folder, self.token, self.namespace = folder, uuid.uuid4().hex, f"mmrl{os.getpid()}"
        self.environment = {
            **environment(), TOKEN: self.token, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex,
            "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3", **variables,
        }  # fmt: skip
        self.sockets = f"/tmp/mmrl{os.getpid()}"  # their paths must be short
        self.second: subprocess.Popen | None = None

    def start_head(self, cpus: int) -> None:
        options = [f"--port={PORT}", f"--node-ip-address={HEAD}", f"--num-cpus={cpus}", "--include-dashboard=false"]
        self._start([sys.executable, *RAY, "--head", *options, f"--temp-dir={self.sockets}"], "head")

    def start_second(self, cpus: int) -> None:
        hidden = {str(ROOT), "/tmp", os.environ.get("MMRL_TEST_DATA", "/tmp")}
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "-m", "--propagation", "private"]
        command = [*enter, "sh", "-c", ENTER, "sh", *sorted(hidden)]
        self.second = self._start(command, "second", CPUS=str(cpus))

    def _start(self, command: list[str], name: str, **variables: str) -> subprocess.Popen:
        """A node's process, once Ray has said that the cluster knows the node."""
        path, env = self.folder / f"{name}.log", {**self.environment, **variables, "NODE": name}
        with path.open("w") as log:
            process = subprocess.Popen(command, cwd="/", env=env, stdout=log, stderr=log)
        wait_until(
            lambda: process.poll() is not None or "Ray runtime started" in path.read_text(), PATIENCE, path.read_text
        )
        assert process.poll() is None, path.read_text()
        return process

    def second_processes(self) -> list[int]:
        """Everything that runs on the second node."""
        return [pid for pid in processes_with(self.token) if b"NODE=second" in _environ(pid)]

    def sees(self, path: str | Path) -> bool:
        """Whether the second node has such a path."""
        return Path(f"/proc/{self.raylet()}/root{path}").exists()

    def raylet(self) -> int:
        for pid in self.second_processes():
            with contextlib.suppress(OSError):
                if "raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_text():
                    return pid
        raise AssertionError("the second node has no raylet")

    def end_second(self) -> None:
        for pid in self.second_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.second.wait()


def _environ(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def two_nodes(folder: Path, *, cpus: int = 1, variables: dict[str, str] = {}) -> Iterator[Cluster]:
    """A head node and a second one of `cpus` each; all their processes have these environment variables.

    One at a time on a machine: the addresses are fixed.
    """
    with FileLock("/tmp/mmrl-two-nodes.lock"):
        yield from _two_nodes(Cluster(folder, variables), cpus)


def _two_nodes(cluster: Cluster, cpus: int) -> Iterator[Cluster]:
    outside, inside = f"mh{os.getpid()}", f"ms{os.getpid()}"
    ip("netns", "add", cluster.namespace)
    try:
        ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", cluster.namespace)
        ip("addr", "add", f"{HEAD}/24", "dev", outside)
        ip("link", "set", outside, "up")
        for arguments in (["addr", "add", f"{SECOND}/24", "dev", inside], ["link", "set", inside, "up"],
                          ["link", "set", "lo", "up"]):  # fmt: skip
            ip("-n", cluster.namespace, *arguments)
        cluster.start_head(cpus)
        cluster.start_second(cpus)
        yield cluster
    finally:
        end_all(cluster.token)
        shutil.rmtree(cluster.sockets, ignore_errors=True)
        subprocess.run(["ip", "link", "del", outside], capture_output=True)  # none where its making failed
        ip("netns", "del", cluster.namespace)
