"""Ends what a killed driver leaves of its Ray cluster: Ray's agents notice the death of their parent a minute late.

Runs as `python -m flows.reaper FD NAME VALUE` in a session of its own. Waits until the other end of the pipe FD closes,
which any death of its owner does, then kills every process that carries NAME=VALUE in its environment. A byte through
the pipe says that the owner ends in good order.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

PAUSE = 0.1
QUIET_ROUNDS = {"killed": 20, "done": 2}  # a process that is just being started can be missed for a moment


def carriers(name: str, value: str) -> list[int]:
    """Process ids whose environment holds name=value."""
    mark, found = f"{name}={value}".encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def main(fd: int, name: str, value: str) -> None:
    ending, quiet = "done" if os.read(fd, 1) else "killed", 0
    while quiet < QUIET_ROUNDS[ending]:
        left = carriers(name, value)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
