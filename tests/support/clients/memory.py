"""What a server with all its processes holds."""

import contextlib
from pathlib import Path

from tests.support.processes import processes_with


def megabytes(token: str) -> float:
    """Of all processes with the token, a page that several share counted once (PSS)."""
    return sum(_proportional(pid) for pid in processes_with(token)) / 1024


def _proportional(pid: int) -> int:
    """The proportional set size in KB; 0 of a process that is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0
