"""Python children that die with the process that started them."""

import os
import subprocess
import sys
from typing import Any

# Runs a module as `python -m` would, in a process that takes its group with it when the pipe's other end closes.
CHILD = """
import atexit, gc, os, runpy, signal, sys, threading
def watch(fd):
    os.read(fd, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, args=(int(sys.argv[1]),), daemon=True).start()
sys.argv = sys.argv[2:]
atexit.register(gc.freeze)  # no search for garbage at the end
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class Lifeline:
    """Python children that die, with their whole process group, when this closes or this process ends, even by SIGKILL.

    PR_SET_PDEATHSIG would reach DVC alone, not the stage command below it, and fires when the starting thread ends.
    """

    def __init__(self) -> None:
        read, write = os.pipe()
        self._read, self._write = os.fdopen(read), os.fdopen(write, "w")

    def __enter__(self) -> "Lifeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._write.closed

    def close(self) -> None:
        self._write.close()  # the read end stays: a child started too late finds the pipe closed and ends at once

    def start(self, *module_and_args: str, **popen: Any) -> subprocess.Popen:
        """`python -m module args` in a process group of its own; `popen` goes to subprocess.Popen."""
        fd = self._read.fileno()
        argv = [sys.executable, "-c", CHILD, str(fd), *module_and_args]
        return subprocess.Popen(argv, pass_fds=[fd], stdin=subprocess.DEVNULL, start_new_session=True, **popen)
