"""Processes of a test: told by a token in their environment, killed, waited for."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

TOKEN = "MMRL_TEST_TOKEN"
PATIENCE = 300  # seconds for what only has to come: a busy machine takes its time


def processes_with(token: str) -> list[int]:
    """Every living process that has inherited the token in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and token.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # gone, or a zombie
            continue
    return found


def command_of(pid: int) -> str:
    """Its command line; nothing once it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


def trial_workers(token: str) -> list[int]:
    """Ray workers that run a trial."""
    return [pid for pid in processes_with(token) if command_of(pid).startswith("ray::ImplicitFunc")]


def wait_until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what()}"
        time.sleep(0.05)  # a look at every process's environment costs milliseconds


def end_all(token: str) -> None:
    """Kill them and what they start meanwhile, until none is left: a late one would still write into their folder."""

    def none_left() -> bool:
        living = processes_with(token)
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not living

    wait_until(none_left, PATIENCE, lambda: f"the end of {[command_of(pid) for pid in processes_with(token)]}")
