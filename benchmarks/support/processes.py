"""Whole processes and what they cost."""

import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from tests.support.workspace import environment


class Cost(NamedTuple):
    """Seconds that a process took; processor time of it and of the children that it waited for; the largest one's peak
    in MB, which Linux lets begin with what the process held that started it."""

    wall: float
    seconds: float
    peak: float


class Build(NamedTuple):
    """A checkout, and the folder in which its commands run; on one core, unless its processes are `unbound`."""

    source: Path
    project: Path
    unbound: bool = False

    def cost(self, command: list[str]) -> Cost:
        start = time.monotonic()
        child = self.start(command)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0, f"{command} in {self.project} ended with {child.returncode}"
        return Cost(time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)

    def start(self, command: list[str]) -> subprocess.Popen:
        kept = {**environment(), "PYTHONPATH": str(self.source), "PYTHONWARNINGS": "ignore"}
        if self.unbound:
            kept = {name: value for name, value in kept.items() if not name.startswith("OMP_")}
        return subprocess.Popen(command, cwd=self.project, env=kept, stdout=subprocess.DEVNULL)
