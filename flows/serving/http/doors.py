"""Who may ask, and how often: the API key, the Host header on loopback, the rate."""

import hashlib
import hmac
import ipaddress
import json
import math
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import Depends, HTTPException, Request, params
from fastapi.security import APIKeyHeader, HTTPBearer

from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Receive, Scope, Send

KEY = "MMRL_API_KEY"


def key_sha256() -> str | None:
    """SHA-256 of the API key, which is all that is kept of it; None without one. Raises UserError for a key that no
    header can carry."""
    key = os.environ.get(KEY)
    if key is None:
        return None
    if not key:
        raise UserError(f"{KEY} is empty, so that nothing would be asked for; give it a key, or unset it")
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{KEY} has a blank, a line break or characters beyond ASCII, which no header can carry; "
                        "give it another key")  # fmt: skip
    return hashlib.sha256(key.encode()).hexdigest()


class Key:
    """What a request must carry; only its SHA-256 is known. None: nothing is asked for."""

    def __init__(self, sha256: str | None):
        self.sha256 = sha256

    def check(self, headers: "Headers") -> None:
        """Raises HTTPException, 401, without the key as a bearer token or in X-API-Key."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        self._compare(token if scheme.lower() == "bearer" and token else headers.get("x-api-key", ""))

    def _compare(self, given: str) -> None:
        found = hashlib.sha256(given.strip().encode(errors="replace")).hexdigest()
        if self.sha256 and not hmac.compare_digest(found, self.sha256):
            raise HTTPException(
                401,
                "send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                {"WWW-Authenticate": "Bearer"},
            )

    @property
    def guard(self) -> list[params.Depends]:
        """The same as what a route depends on, which the description tells of."""
        if not self.sha256:
            return []
        bearer = HTTPBearer(auto_error=False, description=f"The value of {KEY} where the server runs.")
        header = APIKeyHeader(name="X-API-Key", auto_error=False)
        return [Depends(bearer), Depends(header), Depends(self._checked)]

    def _checked(self, request: Request) -> None:
        self.check(request.headers)


class RateLimit:
    """Lets `per_second` questions pass on average, and as many at once after a second's rest; all where it is None.

    There is one key, so that one count is enough."""

    def __init__(self, per_second: float | None, clock: Callable[[], float] = time.monotonic):
        self._rate, self._clock = per_second, clock
        self._most = max(per_second or 0, 1)
        self._left, self._at = self._most, clock()

    def check(self) -> None:
        """Raises HTTPException, 429, with the seconds until the next may come."""
        if self._rate is None:
            return
        now = self._clock()
        self._left, self._at = min(self._most, self._left + (now - self._at) * self._rate), now
        if self._left < 1:
            seconds = str(math.ceil((1 - self._left) / self._rate))
            raise HTTPException(429, f"more than {self._rate:g} questions a second; ask again in {seconds} s",
                                {"Retry-After": seconds})  # fmt: skip
        self._left -= 1


class LoopbackHost:
    """ASGI around the application: only requests for a name of this machine pass, so that no page of another site can
    ask in the name of whoever looks at it (DNS rebinding)."""

    def __init__(self, app: "ASGIApp"):
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", []) if name == b"host"]
        if scope["type"] != "http" or all(map(is_loopback, hosts)):
            await self._app(scope, receive, send)
            return
        problem = {"error": f"the Host header is no name of this machine; ask for 127.0.0.1, or set {KEY} where the "
                            "server runs"}  # fmt: skip
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(problem).encode()})


def is_loopback(host: str) -> bool:
    """Whether a Host header, or an address to listen on, names the loopback interface."""
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    else:
        name = host if host.count(":") > 1 else host.partition(":")[0]
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
