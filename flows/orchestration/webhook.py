"""MLflow's webhooks: deliveries verified by their signature, and a small server on loopback that receives them.

A delivery is signed with HMAC-SHA256 over `id.timestamp.body`, base64 behind `v1,` (mlflow.webhooks.delivery).
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SIGNATURE, TIMESTAMP, DELIVERY = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
SECRET = "MMRL_WEBHOOK_SECRET"  # the environment variable
TOLERANCE = 300  # seconds that a delivery may be old, or a clock ahead
MOST = 64 * 1024  # bytes of a body


class Unverified(ValueError):
    """A delivery that is not of the sender who knows the secret, or is an old one."""


class Deliveries:
    """Each is accepted once, while it is fresh."""

    def __init__(self, secret: str, clock: Callable[[], float] = time.time):
        self._secret, self._clock = secret.encode(), clock
        self._seen: dict[str, float] = {}

    def accept(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The event of a delivery. Raises Unverified, in a constant time as to the signature."""
        number, stamp, signature = (headers.get(name) or "" for name in (DELIVERY, TIMESTAMP, SIGNATURE))
        signed = hmac.new(self._secret, f"{number}.{stamp}.".encode() + body, hashlib.sha256).digest()
        if not hmac.compare_digest(f"v1,{base64.b64encode(signed).decode()}".encode(), signature.encode()):
            raise Unverified("the signature is not that of the secret")
        now = self._clock()
        if not stamp.isdigit() or abs(now - int(stamp)) > TOLERANCE:
            raise Unverified("the delivery is too old")
        self._seen = {known: at for known, at in self._seen.items() if now - at <= 2 * TOLERANCE}
        if number in self._seen:
            raise Unverified("the delivery came before")
        self._seen[number] = now
        return json.loads(body)


def moved_alias(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name of the registered model and alias where an event says that one was set; else None."""
    if (event.get("entity"), event.get("action")) != ("model_version_alias", "created"):
        return None
    data = event.get("data") or {}
    return str(data.get("name")), str(data.get("alias"))


def server(host: str, port: int, secret: str, on_move: Callable[[str, str], None]) -> ThreadingHTTPServer:
    """A server that calls `on_move(name, alias)` for every verified move of an alias; port 0 takes a free one.

    Answers 204, 401 to what is not verified, 413 and 400 to what no delivery can be. `on_move` must not wait.
    """
    deliveries = Deliveries(secret)

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a sender to say what it has to say

        def do_POST(self) -> None:
            self.send_response(self._status())
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _status(self) -> int:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MOST:
                self.close_connection = True
                return 413 if length.isdigit() else 411
            try:
                event = deliveries.accept(self.headers, self.rfile.read(int(length)))
                moved = moved_alias(event)
            except Unverified:
                return 401
            except (ValueError, AttributeError):
                return 400
            if moved:
                on_move(*moved)
            return 204

        def log_message(self, *_: Any) -> None:
            """Nothing: a release says what it does itself."""

    return ThreadingHTTPServer((host, port), Handler)
