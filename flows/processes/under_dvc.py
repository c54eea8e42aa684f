"""A stage's command dies with the `dvc repro` that started it: dvc itself leaves its child running."""

import contextlib
import functools
import os
import select
import signal
import sys
import threading
from pathlib import Path

STAGE = "DVC_STAGE"  # environment variable that dvc gives to what it starts: the command, or the shell around it


def is_stage() -> bool:
    """Whether DVC started this process."""
    return STAGE in os.environ


@functools.cache
def die_with_dvc() -> None:
    """Under `dvc repro` on Linux, kill this process when dvc dies, by whatever signal, or the shell between them.

    The kernel's own PR_SET_PDEATHSIG tells of the parent alone, and with dash that is the shell, which waits on.
    """
    if not is_stage() or not sys.platform.startswith("linux"):
        return
    try:
        pids = _up_to_dvc(os.environ[STAGE])
        processes = [os.pidfd_open(pid) for pid in pids]
        alive = b"dvc" in _read(pids[-1], "cmdline")
    except (ProcessLookupError, FileNotFoundError):
        alive = False
    if not alive:  # it died before, and this process or its shell was given to another parent
        _die()
    threading.Thread(target=_wait_for_an_end, args=(processes,), daemon=True).start()


def _up_to_dvc(stage: str) -> list[int]:
    """This process's ancestors, up to the nearest that was not started for the stage."""
    pids = [os.getppid()]
    while f"{STAGE}={stage}".encode() in _read(pids[-1], "environ").split(b"\0"):
        pids.append(int(_read(pids[-1], "stat").rpartition(b")")[2].split()[1]))
    return pids


def _read(pid: int, part: str) -> bytes:
    """Nothing of a process that is not ours."""
    with contextlib.suppress(PermissionError):
        return Path(f"/proc/{pid}/{part}").read_bytes()
    return b""


def _wait_for_an_end(processes: list[int]) -> None:
    ends = select.poll()
    for process in processes:
        ends.register(process, select.POLLIN)
    ends.poll()
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
