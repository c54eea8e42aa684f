"""The application on a real socket of loopback, in a thread of this process, and bytes as any client may send them."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

from fastapi import FastAPI

from flows.serving.http.protocol import Room
from flows.serving.http.server import HttpServer

PATIENCE = 60  # seconds; for hangs alone


class Listening(NamedTuple):
    port: int
    server: HttpServer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


@contextlib.contextmanager
def listening(app: FastAPI, seconds: float = 60, most: int = 1000) -> Iterator[Listening]:
    """`seconds` are those of HttpServer, `most` are the questions that may be under way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Event()
        room = Room("/predict", most, lambda: None)
        server = HttpServer(app, listener, seconds, room, answering.set)
        thread = threading.Thread(target=server.answer)
        thread.start()
        assert answering.wait(PATIENCE)
        try:
            yield Listening(listener.getsockname()[1], server)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def error(self) -> str:
        return json.loads(self.content)["error"]


def all_of(connection: socket.socket) -> Reply:
    """What comes until the server hangs up: one answer."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    head, _, content = bytes(received).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Reply(int(first.split()[1]), headers, content)
