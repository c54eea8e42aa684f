"""Ends what a killed driver leaves of its Ray cluster: Ray's agents notice the death of their parent a minute late.

Runs as `python -m flows.processes.reaper FD FOLDER` in a session of its own, FOLDER being where that cluster keeps its
logs and sockets. Waits until the other end of the pipe FD closes, which any death of its owner does, then kills every
process that has to do with the folder and removes it. A byte through the pipe says that the owner ends in good order.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PAUSE = 0.1
QUIET_ROUNDS = {"killed": 20, "done": 2}  # a process that is just being started can be missed for a moment


def users_of(folder: str, but: set[int]) -> list[int]:
    """Process ids that name the folder in their command line or environment, or have a file in it open.

    All three, since the titles that Ray gives its processes overwrite the first two.
    """
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()} - but
    processes = [Path(f"/proc/{pid}") for pid in pids]
    return [int(process.name) for process in processes if _names(process, folder) or _has_open(process, folder)]


def _names(process: Path, folder: str) -> bool:
    with contextlib.suppress(OSError):  # gone meanwhile, or not ours
        return any(folder.encode() in (process / part).read_bytes() for part in ("cmdline", "environ"))
    return False


def _has_open(process: Path, folder: str) -> bool:
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(link).startswith(folder):
                    return True
    return False


def main(fd: int, folder: str) -> None:
    spared = {os.getpid(), os.getppid()}  # itself and the owner
    ending, quiet = "done" if os.read(fd, 1) else "killed", 0
    while quiet < QUIET_ROUNDS[ending]:
        left = users_of(folder, spared)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        time.sleep(PAUSE)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
