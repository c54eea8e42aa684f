"""Questions over bare connections: a client library costs more for one than the servers do that are measured."""

import asyncio
import json
from typing import Any, NamedTuple

import httptools

HOST = "127.0.0.1"


class Answer(NamedTuple):
    status: int
    retry_after: str | None
    body: bytes


def request(path: str, body: object = None, **headers: object) -> bytes:
    """The bytes of a POST of JSON, or of a GET without a body. Underscores in names of headers become hyphens."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields: dict[str, Any] = {"Host": HOST, "Content-Type": "application/json", "Content-Length": len(content)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", *(f"{key}: {fields[key]}" for key in fields)]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Connection(asyncio.Protocol):
    """One question at a time. It is opened for the first one, and again after the server has closed it."""

    def __init__(self, port: int):
        self.port = port
        self.transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Answer] | None = None

    async def ask(self, question: bytes, *then: bytes, pause: float = 0) -> Answer:
        """The answer; what is in `then` is sent piece by piece, a pause (in seconds) before each.

        Raises OSError where there is no server, or where it closes the connection without an answer.
        """
        loop = asyncio.get_running_loop()
        if self.transport is None:
            await loop.create_connection(lambda: self, HOST, self.port)
        assert self.transport
        self._answered, self._parser = loop.create_future(), httptools.HttpResponseParser(self)
        self._retry_after, self._body = None, b""
        self.transport.write(question)
        for piece in then:
            await asyncio.wait([self._answered], timeout=pause)
            if self._answered.done() or self.transport is None:
                break
            self.transport.write(piece)
        return await self._answered

    async def leave(self, question: bytes) -> None:
        """Send that much and go, without waiting for an answer."""
        loop = asyncio.get_running_loop()
        if self.transport is None:
            await loop.create_connection(lambda: self, HOST, self.port)
        assert self.transport
        self.transport.write(question)
        self.close()

    def close(self) -> None:
        if self.transport:
            self.transport.close()
            self.transport = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answered and not self._answered.done():
            self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), self._retry_after, self._body)
        if not self._parser.should_keep_alive():
            self.close()
        if self._answered and not self._answered.done() and answer.status >= 200:
            self._answered.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._answered and not self._answered.done():
            self._answered.set_exception(ConnectionResetError("closed without an answer"))


async def together(port: int, questions: list[bytes]) -> list[Answer]:
    """The answers to all at once, each over a connection of its own; status 0 where there was none."""

    async def one(question: bytes) -> Answer:
        connection = Connection(port)
        try:
            return await connection.ask(question)
        except OSError as error:
            return Answer(0, None, str(error).encode())
        finally:
            connection.close()

    return await asyncio.gather(*map(one, questions))
