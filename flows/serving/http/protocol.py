"""HTTP/1.1 by uvicorn, with bounds that it does not have: on a head's size, and on the time that a message may take."""

import asyncio
import json
import resource
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flows.serving.busy import SOON
from flows.serving.http.departure import Departure

DEPARTURE = "departure"  # in a request's state
HEAD_SECONDS = 10  # from the first byte, or the connection, to the end of the head
ENDING_SECONDS = 0.5  # that a connection without a question is still read once the server is to end
HEAD_BYTES, HEADERS = 32_768, 100
MORE_FILES = 64  # that the process may have open beside its connections


class Room:
    """How many questions may be on their way to an answer at a time, of those that have come whole. Beyond it they are
    refused before anything is made of them: to refuse must cost next to nothing where it is done thousands of times."""

    def __init__(self, path: str, most: int, refused: Callable[[], None]):
        self.path, self.refused = path.encode(), refused
        self._most = most
        self._in: set[Departure] = set()

    @property
    def full(self) -> bool:
        return len(self._in) >= self._most

    def enter(self, departure: Departure) -> None:
        self._in.add(departure)

    def leave(self, departure: Departure) -> None:
        self._in.discard(departure)


class Protocol(HttpToolsProtocol):
    """One connection. `body_seconds` is how long a body may take to come, also after the question has been answered.

    The application finds the question's Departure in the request's state."""

    body_seconds: float = 60
    connections_at_most: int = 1000
    room: Room

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._stage: str | None = "head"  # head, body, or None between two messages
        self._head_bytes = self._n_headers = self._field_bytes = 0
        self._departures: deque[Departure] = deque()  # of questions without an answer
        self._ending = self._refusing = False
        self._deadline: asyncio.TimerHandle | None = None
        if len(self.connections) > self.connections_at_most:
            self._refuse(503, f"too many connections; ask again in {SOON} s", {"retry-after": str(SOON)})
        else:
            self._watch("head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)
        while self._departures:
            departure = self._departures.popleft()
            self.room.leave(departure)
            departure.happen()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._stage is None:
            self._stage = "head"  # of the next question, which may be no more than a line break
        before = self._stage
        if before == "head":
            self._head_bytes += len(data)
        super().data_received(data)
        if self._stage == "head" and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, f"the head has more than {HEAD_BYTES} bytes; send less")
        if self._deadline is None or self._stage != before:
            self._unwatch()
            if self._stage and not self.transport.is_closing():
                self._watch(self._stage)

    def on_message_begin(self) -> None:
        self._stage, self._n_headers, self._field_bytes = "head", 0, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._n_headers += 1
        self._field_bytes += len(name) + len(value)
        if self._n_headers <= HEADERS and self._field_bytes <= HEAD_BYTES:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._n_headers > HEADERS or self._field_bytes > HEAD_BYTES:
            raise _TooMany
        self._stage, self._head_bytes = "body", 0
        if self._in_vain():
            self._refusing = True
            return
        self.scope["state"][DEPARTURE] = departure = Departure()
        self._departures.append(departure)
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self._refusing:
            super().on_body(body)

    def on_response_complete(self) -> None:
        if self._departures:  # not where the connection was lost
            self.room.leave(self._departures.popleft())
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._stage = None
        if self._refusing:
            self._send_away()
            return
        if self.url == self.room.path and self._departures and not self.cycle.response_complete:
            self.room.enter(self._departures[-1])
        super().on_message_complete()

    def _in_vain(self) -> bool:
        """Whether the question whose head is there would only wait: it is refused, once its body has come."""
        return (
            self.room.full and self.url == self.room.path and not (self._departures or self.expect_100_continue)
        )  # fmt: skip

    def _send_away(self) -> None:
        self._refusing = False
        self.room.refused()
        self._answer(503, f"too many questions wait already; ask again in {SOON} s", {"retry-after": str(SOON)})
        if self._ending or not self.parser.should_keep_alive():
            self.transport.close()
        else:
            self.flow.pause_reading()  # who asks again at once is not even read
            self.loop.call_later(SOON, self.flow.resume_reading)
            self._unset_keepalive_if_required()  # of a question that came with this one
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def shutdown(self) -> None:
        """The server is to end. A question that is on its way is answered: uvicorn would hang up on it."""
        self._ending = True
        if self._departures:
            super().shutdown()
        else:
            self.loop.call_later(ENDING_SECONDS, super().shutdown)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to what is no HTTP, and where a callback of the parser raises."""
        if self._n_headers > HEADERS:
            self._refuse(431, f"the head has more than {HEADERS} headers; send less")
        elif self._field_bytes > HEAD_BYTES:
            self._refuse(431, f"the head has more than {HEAD_BYTES} bytes; send less")
        else:
            self._refuse(400, "this is no HTTP/1.1 request; correct it")

    def _watch(self, stage: str) -> None:
        seconds = HEAD_SECONDS if stage == "head" else self.body_seconds
        self._deadline = self.loop.call_later(seconds, self._late, stage, seconds)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self, stage: str, seconds: float) -> None:
        if stage == "head" and self.cycle is not None and not self.cycle.response_complete:
            self._watch(stage)  # the question before this one is being answered
        elif stage == "body" and not self._refusing and self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(408, f"the {stage} of the request did not come within {seconds:g} s; send it again")

    def _refuse(self, status: int, problem: str, headers: dict[str, str] | None = None) -> None:
        """Answer without the application, and hang up."""
        if not self.transport.is_closing():
            self._answer(status, problem, {"connection": "close", **(headers or {})})
            self.transport.close()

    def _answer(self, status: int, problem: str, headers: dict[str, str]) -> None:
        content = json.dumps({"error": problem}).encode()
        lines = {"content-type": "application/json", "content-length": str(len(content)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.transport.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode() + content)


class _TooMany(Exception):
    """Raised in a callback of the parser, which ends the parsing."""


def protocol(body_seconds: float, room: Room) -> type[Protocol]:
    """The class of a server's connections. As many of them may be open as the system lets this process have, which is
    raised to what it may be raised to."""
    most = _open_files() - MORE_FILES
    limits: dict[str, Any] = {"body_seconds": body_seconds, "connections_at_most": most, "room": room}
    return type("BoundedProtocol", (Protocol,), limits)


def _open_files() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2 * MORE_FILES) if soft != -1 else wanted
