"""Asks a server, `mmrl serve`, over HTTP. It needs no torch."""

import base64
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from mmrl_core.data.images import to_rgb
from mmrl_core.errors import Failed, UserError
from mmrl_core.parsing import parse_json, whole_number

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "MMRL_API_KEY"  # the environment variable, as where the server runs
BUSY = (429, 503)  # it says when to ask again
PAUSE = 1  # seconds before asking again where it does not say
CUT = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)  # by a server that ends, or an old connection


@dataclass(frozen=True)
class Answer:
    """What a server says of an image; `abstained` is None where that was not asked for."""

    label: str
    probability: float
    probabilities: dict[str, float]  # of the most probable names, the likeliest first
    confidence: float
    model: dict[str, Any]  # the version that answered: name, version, adapter_sha256
    abstained: bool | None = None


ANSWER = {field.name for field in fields(Answer)}  # a later server may say more


class Client:
    """A server of `mmrl serve` at an address; its connections stay open until it is closed.

    Threads may share one. `key` is by default what MMRL_API_KEY holds, `timeout` the seconds that the server may be
    silent, `patience` the seconds in all for which a question is asked again that it was too busy for (503, 429).

    Raises UserError for an address or a key that cannot be one, and for a mistake in a question; Failed where the
    server does not answer, fails, or stays busy.
    """

    def __init__(
        self, address: str = "http://127.0.0.1:8000", key: str | None = None, timeout: float = 60, patience: float = 60,
        wait: Callable[[float], None] = time.sleep,
    ):  # fmt: skip
        self.address, self._patience, self._wait = address.rstrip("/"), patience, wait
        key = os.environ.get(KEY) if key is None else key
        if key is not None and not (key and key.isascii() and key.isprintable()):
            raise UserError(f"the API key is empty, or has a character that no header carries; correct key or {KEY}")
        self._http = httpx2.Client(headers={"X-API-Key": key} if key else {}, timeout=timeout)

    def predict(
        self, image: "bytes | str | os.PathLike[str] | Image", *, class_names: Sequence[str] | None = None,
        top_k: int | None = None, abstain: bool | None = None, threshold: float | None = None,
    ) -> Answer:  # fmt: skip
        """What an image shows: a path, the bytes of a file, or an image of Pillow's, which goes as PNG.

        `class_names` are others than the trained ones, `top_k` (5) how many probabilities to give; `abstain` says
        whether none of the classes fits, by the adapter's `threshold` or the one given.
        """
        asked = {"class_names": class_names and list(class_names), "top_k": top_k, "abstain": abstain,
                 "threshold": threshold, "image": base64.b64encode(_encoded(image)).decode()}  # fmt: skip
        content = json.dumps({name: value for name, value in asked.items() if value is not None})
        found = self._ask("POST", "/predict", content=content, headers={"Content-Type": "application/json"})
        try:
            return Answer(**{name: value for name, value in found.items() if name in ANSWER})
        except TypeError:
            raise self._other(200) from None

    def classes(self) -> list[str]:
        """The names that the server's version was trained on."""
        found = self._ask("GET", "/classes")
        if "class_names" not in found:
            raise self._other(200)
        return found["class_names"]

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        waited = 0.0
        while True:
            response = self._send(method, path, **request)
            if response.status_code == 200:
                return self._object(response)
            pause = whole_number(response.headers.get("Retry-After", "")) or PAUSE
            if response.status_code not in BUSY or waited + pause > self._patience:
                raise self._refused(response)
            self._wait(pause)
            waited += pause

    def _send(self, method: str, path: str, again: bool = True, **request: Any) -> httpx2.Response:
        try:
            return self._http.request(method, self.address + path, **request)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
            raise UserError(f"{self.address!r} is no address of a server; http://127.0.0.1:8000 is one") from None
        except httpx2.TimeoutException as error:
            raise Failed(f"{self.address} did not answer in time ({type(error).__name__})") from None
        except httpx2.HTTPError as error:
            if again and isinstance(error, CUT):
                return self._send(method, path, again=False, **request)
            raise Failed(f"{self.address} cannot be reached ({error or type(error).__name__}); does it run?") from None

    def _object(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            found = parse_json(response.content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._other(response.status_code)
        return found

    def _other(self, status: int) -> Failed:
        return Failed(f"{self.address} answers {status}, and not as `mmrl serve` does; is it another server?")

    def _refused(self, response: httpx2.Response) -> Exception:
        error = self._object(response).get("error", response.reason_phrase)
        kind = UserError if 400 <= response.status_code < 500 and response.status_code not in BUSY else Failed
        return kind(f"{self.address} answers {response.status_code}: {error}")


def _encoded(image: "bytes | str | os.PathLike[str] | Image") -> bytes:
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if not isinstance(image, (str, os.PathLike)):
        buffer = io.BytesIO()
        to_rgb(image, "the image").save(buffer, format="PNG")
        return buffer.getvalue()
    try:
        return Path(image).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in a path
        raise UserError(f"cannot read the image {os.fspath(image)!r} ({error}); name another file") from None
