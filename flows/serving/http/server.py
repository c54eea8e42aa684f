"""uvicorn around an application, on a socket that is open already, until a signal comes."""

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from flows.serving.http.protocol import Room, protocol

# After which a thread that waits for the interpreter gets it. With Python's 5 ms the event loop waits for the decoders'
# threads so often that under load /healthz takes three times as long.
SWITCH_SECONDS = 0.0005
IDLE_SECONDS = 75  # that a connection may be open without a question; longer than load balancers keep one


class HttpServer(uvicorn.Server):
    """Answers what is in flight when a signal comes, within `seconds`; a second signal hangs up at once. `answering` is
    called in a thread once connections are accepted."""

    def __init__(
        self, app: FastAPI, listener: socket.socket, seconds: float, room: Room, answering: Callable[[], None]
    ):
        self._listener, self._answering = listener, answering
        super().__init__(
            uvicorn.Config(
                app, http=protocol(seconds, room), ws="none", lifespan="off", log_config=None, log_level="error",
                access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=int(seconds) + 1,
            )
        )  # fmt: skip

    def answer(self) -> None:
        """Blocks until a signal has come and all is answered."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            self.run([self._listener])
        finally:
            sys.setswitchinterval(before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        threading.Thread(target=self._answering, name="started", daemon=True).start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal again once all is done: the process would not end with 0."""
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit, self.should_exit = self.should_exit, True
