"""Where evaluations of tests/slow/search_driver.py report and wait: a test stops a search just where it wants to."""

import socket
from collections import Counter, deque
from collections.abc import Callable

from tests.processes import PATIENCE


class Gate:
    """`slots`: how many evaluations run side by side."""

    def __init__(self, slots: int, host: str = "127.0.0.1"):
        self.listening = socket.create_server((host, 0))
        self.listening.settimeout(PATIENCE)
        self.address = f"{host}:{self.listening.getsockname()[1]}"
        self.slots, self.waiting = slots, deque()

    def let_in_until(self, enough: Callable[[], bool]) -> Counter:
        """One evaluation after the other goes on until there are enough; then one waits in every slot: how many of
        those came from which host."""
        self._fill()
        while not enough():
            self.waiting.popleft()[0].close()
            self._fill()
        return Counter(host for _, (host, _) in self.waiting)

    def _fill(self) -> None:
        while len(self.waiting) < self.slots:
            self.waiting.append(self.listening.accept())

    def open(self) -> None:
        """For good."""
        self.listening.close()
        while self.waiting:
            self.waiting.popleft()[0].close()
