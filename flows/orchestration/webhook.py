"""MLflow's webhooks: deliveries verified by their signature, and a small server on loopback that receives them.

A delivery is signed with HMAC-SHA256 over `id.timestamp.body`, base64 behind `v1,` (mlflow.webhooks.delivery).
"""

import base64
import contextlib
import hashlib
import hmac
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from mmrl_core.parsing import parse_json, whole_number

if TYPE_CHECKING:
    from email.message import Message

SIGNATURE, TIMESTAMP, DELIVERY = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
SECRET = "MMRL_WEBHOOK_SECRET"  # the environment variable
TOLERANCE = 300  # seconds that a delivery may be old, or a clock ahead
MAX_BYTES = 64 * 1024  # of a body
SENDING = 10  # seconds that a sender has for its delivery
MOST = 16  # senders at once, each with a thread; one more takes the place of the first of them


class Unverified(ValueError):
    """A delivery whose signature was not made with the secret, that is too old, or that came before."""


class Deliveries:
    """Verifies deliveries: each is accepted once, within TOLERANCE seconds of its timestamp."""

    def __init__(self, secret: str, clock: Callable[[], float] = time.time):
        self._secret, self._clock = secret.encode(errors="surrogateescape"), clock
        self._seen: dict[str, float] = {}
        self._one_by_one = threading.Lock()

    def accept(self, headers: "Mapping[str, str] | Message", body: bytes) -> dict[str, Any]:
        """The event of a delivery. Raises Unverified, and ValueError for a body that is no JSON object; signatures are
        compared in constant time."""
        number, stamp, signature = (headers.get(name) or "" for name in (DELIVERY, TIMESTAMP, SIGNATURE))
        signed = hmac.new(self._secret, _bytes(f"{number}.{stamp}.") + body, hashlib.sha256).digest()
        if not hmac.compare_digest(f"v1,{base64.b64encode(signed).decode()}".encode(), _bytes(signature)):
            raise Unverified("the signature is not that of the secret")
        now = self._clock()
        sent = whole_number(stamp)
        if sent is None or abs(now - sent) > TOLERANCE:
            raise Unverified("the delivery is too old")
        self._note(number, now)
        event = parse_json(body)
        if not isinstance(event, dict):
            raise ValueError("it is no JSON object")
        return event

    def _note(self, number: str, now: float) -> None:
        with self._one_by_one:
            self._seen = {known: at for known, at in self._seen.items() if now - at <= 2 * TOLERANCE}
            if number in self._seen:
                raise Unverified("the delivery came before")
            self._seen[number] = now


def _bytes(header: str) -> bytes:
    """A header may be any text: one that was not sent by MLflow verifies nothing."""
    return header.encode(errors="replace")


def moved_alias(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """The registered model's name and the alias where an event says that an alias was set; else None.

    Raises ValueError for such an event that names neither by a text.
    """
    if (event.get("entity"), event.get("action")) != ("model_version_alias", "created"):
        return None
    data = event.get("data")
    name, alias = (data.get("name"), data.get("alias")) if isinstance(data, dict) else (None, None)
    if not (isinstance(name, str) and isinstance(alias, str)):
        raise ValueError("it does not say of which model and alias it is")
    return name, alias


class Listener(ThreadingHTTPServer):
    """Calls `on_move(name, alias)`, which must not block, for every verified move of an alias.

    Answers 204; 401 to an unverified delivery, 411 to one without a length, 413 to one over MAX_BYTES, 400 to one that
    is cut short or says nothing that can be understood. Nobody holds a thread for longer than SENDING: what a sender
    has not sent by then, or when its place is taken, counts as not sent.
    """

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], secret: str, on_move: Callable[[str, str], None]):
        self.deliveries, self.on_move = Deliveries(secret), on_move
        self._senders: dict[socket.socket, float] = {}  # until when each may send, the first first
        self._change = threading.Lock()
        super().__init__(address, _Delivery)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._change:
            if len(self._senders) >= MOST:
                self._end(next(iter(self._senders)))
            self._senders[request] = time.monotonic() + SENDING
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called by `serve_forever` twice a second."""
        with self._change:
            for sender in [sender for sender, until in self._senders.items() if until <= time.monotonic()]:
                self._end(sender)

    def shutdown_request(self, request: Any) -> None:
        with self._change:
            self._senders.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        with self._change:
            for sender in list(self._senders):
                self._end(sender)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that has left is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _end(self, sender: socket.socket) -> None:
        """Its thread reads no more; it answers, and closes the connection."""
        del self._senders[sender]
        with contextlib.suppress(OSError):
            sender.shutdown(socket.SHUT_RD)


class _Delivery(BaseHTTPRequestHandler):
    server: Listener
    timeout = SENDING
    default_request_version = "HTTP/1.0"  # of what states none: by default its answer would have no status
    error_message_format = ""

    def do_POST(self) -> None:
        self.close_connection = True
        self.send_response(self._status())
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _status(self) -> int:
        length = self._length()
        if length is None or length > MAX_BYTES:
            return 411 if length is None else 413
        body = self.rfile.read(length)
        if len(body) < length:
            return 400
        try:
            moved = moved_alias(self.server.deliveries.accept(self.headers, body))
        except ValueError as error:
            return 401 if isinstance(error, Unverified) else 400
        if moved:
            self.server.on_move(*moved)
        return 204

    def _length(self) -> int | None:
        """Of the body; None where it is not stated in one way."""
        lengths = set(self.headers.get_all("Content-Length", []))
        return whole_number(lengths.pop()) if len(lengths) == 1 and "Transfer-Encoding" not in self.headers else None

    def log_message(self, *_: Any) -> None:
        """Log nothing: a release prints its own lines."""
