"""MLflow's webhooks: deliveries verified by their signature, and a small server on loopback that receives them.

A delivery is signed with HMAC-SHA256 over `id.timestamp.body`, base64 behind `v1,` (mlflow.webhooks.delivery).
"""

import base64
import hashlib
import hmac
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


class Unverified(ValueError):
    """A delivery whose signature was not made with the secret, that is too old, or that came before."""


class Deliveries:
    """Verifies deliveries: each is accepted once, within TOLERANCE seconds of its timestamp."""

    def __init__(self, secret: str, clock: Callable[[], float] = time.time):
        self._secret, self._clock = secret.encode(), clock
        self._seen: dict[str, float] = {}

    def accept(self, headers: "Mapping[str, str] | Message", body: bytes) -> dict[str, Any]:
        """The event of a delivery. Raises Unverified; signatures are compared in constant time."""
        number, stamp, signature = (headers.get(name) or "" for name in (DELIVERY, TIMESTAMP, SIGNATURE))
        signed = hmac.new(self._secret, _bytes(f"{number}.{stamp}.") + body, hashlib.sha256).digest()
        if not hmac.compare_digest(f"v1,{base64.b64encode(signed).decode()}".encode(), _bytes(signature)):
            raise Unverified("the signature is not that of the secret")
        now = self._clock()
        sent = whole_number(stamp)
        if sent is None or abs(now - sent) > TOLERANCE:
            raise Unverified("the delivery is too old")
        self._seen = {known: at for known, at in self._seen.items() if now - at <= 2 * TOLERANCE}
        if number in self._seen:
            raise Unverified("the delivery came before")
        self._seen[number] = now
        return parse_json(body)


def _bytes(header: str) -> bytes:
    """A header may be any text: one that was not sent by MLflow verifies nothing."""
    return header.encode(errors="replace")


def moved_alias(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """The registered model's name and the alias where an event says that an alias was set; else None."""
    if (event.get("entity"), event.get("action")) != ("model_version_alias", "created"):
        return None
    data = event.get("data") or {}
    return str(data.get("name")), str(data.get("alias"))


def server(host: str, port: int, secret: str, on_move: Callable[[str, str], None]) -> ThreadingHTTPServer:
    """A server that calls `on_move(name, alias)` for every verified move of an alias; port 0 takes a free one.

    Answers 204; 401 to an unverified delivery, 411 to one without a length, 413 to one over MAX_BYTES, 400 to one that
    is no JSON object. `on_move` must not block.
    """
    deliveries = Deliveries(secret)

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a sender to send its delivery

        def do_POST(self) -> None:
            self.send_response(self._status())
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _status(self) -> int:
            length = whole_number(self.headers.get("Content-Length", ""))
            if length is None or length > MAX_BYTES:
                self.close_connection = True
                return 411 if length is None else 413
            try:
                event = deliveries.accept(self.headers, self.rfile.read(length))
                moved = moved_alias(event)
            except Unverified:
                return 401
            except (ValueError, AttributeError):
                return 400
            if moved:
                on_move(*moved)
            return 204

        def log_message(self, *_: Any) -> None:
            """Log nothing: a release prints its own lines."""

    return ThreadingHTTPServer((host, port), Handler)
