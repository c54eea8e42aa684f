"""A process that stops by itself at a certain file, so that a kill there can neither come too early nor too late."""

import os
from pathlib import Path

from tests.support.processes import PATIENCE, wait_until

# Python imports this by itself at start-up.
HOLD = """
import fnmatch, os, sys, time

def hold(event, arguments):
    if event != "open" or not fnmatch.fnmatch(path := str(arguments[0]), os.environ["HOLD_AT"]):
        return
    folder = os.path.dirname(path)
    if len(os.listdir(folder)) >= int(os.environ["HOLD_AFTER"]):
        with open(os.environ["HELD"], "a") as held:
            held.write(f"{os.getpid()}\\n")
        for _ in range(6000):
            if os.path.exists(os.environ["HELD"] + ".go"):
                return
            time.sleep(0.1)

sys.addaudithook(hold)
"""


class Hold:
    """Processes with its `environment` stop where they open a file that matches `pattern`, before it is there, once
    its folder has `after` entries; until `go`."""

    def __init__(self, folder: Path, pattern: str, after: int = 0):
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(HOLD)
        self.held = folder / "held"
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {"PYTHONPATH": path, "HOLD_AT": pattern, "HOLD_AFTER": str(after), "HELD": str(self.held)}

    def wait(self, running) -> None:
        """Until one has stopped there; `running` is the process that leads there."""
        wait_until(lambda: self.held.exists() or running.poll() is not None, PATIENCE, lambda: "a process at the hold")
        assert self.held.exists(), f"it ended with {running.returncode} before that"

    def go(self) -> None:
        """Let all of them, and those that come, go on."""
        Path(f"{self.held}.go").touch()
