"""What a server with all its processes holds, and what it has computed for."""

import contextlib
import os
from pathlib import Path

from tests.support.processes import processes_with


def megabytes(token: str) -> float:
    """Of all processes with the token, a page that several share counted once (PSS)."""
    return sum(_proportional(pid) for pid in processes_with(token)) / 1024


def processor_seconds(token: str) -> float:
    """Of all living processes with the token, since they began."""
    ticks = 0
    for pid in processes_with(token):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _proportional(pid: int) -> int:
    """The proportional set size in KB; 0 of a process that is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0
