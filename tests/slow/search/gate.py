"""Where evaluations of the simulated search (search_driver.py) report and wait: a test stops it just where it wants."""

import contextlib
import socket
import subprocess
from collections import Counter, deque
from collections.abc import Callable

from tests.support.processes import PATIENCE, wait_until


class Gate:
    """`slots`: how many evaluations run side by side."""

    def __init__(self, slots: int, host: str = "127.0.0.1"):
        self.listening = socket.create_server((host, 0))
        self.listening.settimeout(1)  # then it looks whether the search still runs
        self.address = f"{host}:{self.listening.getsockname()[1]}"
        self.slots, self.waiting = slots, deque()

    def let_in_until(self, enough: Callable[[], bool], search: subprocess.Popen) -> Counter:
        """One evaluation of the search after the other goes on until there are enough; then one waits in every slot:
        how many of those came from which host."""
        self._fill(search)
        while not enough():
            self.waiting.popleft()[0].close()
            self._fill(search)
        return Counter(host for _, (host, _) in self.waiting)

    def _fill(self, search: subprocess.Popen) -> None:
        while len(self.waiting) < self.slots:
            wait_until(lambda: search.poll() is not None or self._comes(), PATIENCE, lambda: "an evaluation")
            assert search.poll() is None, search.stderr.read()

    def _comes(self) -> bool:
        with contextlib.suppress(TimeoutError):
            self.waiting.append(self.listening.accept())
            return True
        return False

    def open(self) -> None:
        """For good."""
        self.listening.close()
        while self.waiting:
            self.waiting.popleft()[0].close()
