"""infra/compose.yaml as the engine reads it, with variables filled in and merges done; its services as processes."""

import os
import re
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import yaml

from tests.support.postgres import free_port, program
from tests.support.processes import PATIENCE, TOKEN, wait_until

FILE = Path(__file__).parents[2] / "infra" / "compose.yaml"
PORTS = ("5432", "8333", "5000", "4200", "6379", "8265", "8080")
HOSTS = re.compile(r"(//|@|address=)(postgres|s3|mlflow|prefect|ray):(?=\d)")

# The variables of the image.
IMAGE = dict(re.findall(r"(\w+)=(\S+)", (FILE.parent / "docker" / "Dockerfile").read_text().partition("\nENV ")[2]))
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(:(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def resolved(values: dict[str, str]) -> dict[str, Any]:
    """The file with these variables; KeyError names one that is demanded and missing."""

    def value(match: re.Match) -> str:
        found = values.get(match["name"])
        if match["kind"] == "-":
            return found or match["rest"]
        if not found:
            raise KeyError(match["name"])
        return found

    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    return yaml.safe_load(VARIABLE.sub(value, "\n".join(lines)))


def variables() -> dict[str, set[str]]:
    """What follows each variable's name: `?`, `-` or nothing."""
    found: dict[str, set[str]] = {}
    for match in VARIABLE.finditer(FILE.read_text()):
        found.setdefault(match["name"], set()).add(match["kind"] or "")
    return found


class Stack:
    """Services as processes, each port of the file standing for a free one of this machine."""

    def __init__(self, folder: Path, postgres_port: int):
        self.folder, self.token = folder, uuid.uuid4().hex
        self.processes: dict[str, subprocess.Popen] = {}
        self.ports = {port: str(free_port()) for port in PORTS} | {"5432": str(postgres_port)}
        self.services = resolved({name: f"secret0{name.replace('_', '0')}" for name in variables()})["services"]

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['5000']}"

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            command = self.command(self.services[name]["command"])
            self.processes[name] = subprocess.Popen(
                command, env=self.environment(name), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def wait_for(self, name: str) -> None:
        log = self.folder / f"{name}.log"

        def well() -> bool:
            assert self.processes[name].poll() is None, f"{name} ended: {log.read_text()[-3000:]}"
            return self.listens(name) and self.is_well(name)

        wait_until(well, PATIENCE, lambda: f"{name}: {log.read_text()[-3000:]}")

    def listens(self, name: str) -> bool:
        """Whether something answers where the health check asks, which is a process of a second or more."""
        port = re.search(r"127\.0\.0\.1:(\d+)", self.here(" ".join(self.services[name]["healthcheck"]["test"])))[1]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) == 0

    def is_well(self, name: str) -> bool:
        """By the health check in the file."""
        check = self.command(self.services[name]["healthcheck"]["test"][1:])
        return subprocess.run(check, env=self.environment(name), capture_output=True).returncode == 0

    def environment(self, name: str) -> dict[str, str]:
        own = {key: self.here(value) for key, value in self.services[name]["environment"].items()}
        own |= {"PGHOST": "127.0.0.1"} if own.get("PGHOST") in self.services else {}
        here = {
            TOKEN: self.token,
            "PATH": f"{Path(sys.executable).parent}:{program('psql').parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "RAY_TMPDIR": str(self.folder),
            "PREFECT_UI_STATIC_DIRECTORY": str(self.folder / "prefect-ui"),
            "PREFECT_WORKER_WEBSERVER_PORT": self.ports["8080"],
            "PGPORT": self.ports["5432"],
        }
        return os.environ | IMAGE | own | here

    def command(self, words: list[str]) -> list[str]:
        return [self.here(word) for word in words]

    def here(self, text: str) -> str:
        text = HOSTS.sub(r"\g<1>127.0.0.1:", text).replace("0.0.0.0", "127.0.0.1")
        text = text.replace("/etc/mlflow/", f"{FILE.parent / 'mlflow'}/")  # where the image has it
        return re.sub(r"\b\d{4}\b", lambda match: self.ports.get(match[0], match[0]), text)
