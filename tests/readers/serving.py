"""What comes over HTTP, and what serving logs of it."""

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from flows.orchestration.webhook import DELIVERY, SIGNATURE, TIMESTAMP, Deliveries, Unverified, moved_alias
from flows.serving.app import _one_line
from flows.serving.drift import drift
from flows.serving.image_urls import Fetcher
from flows.serving.request import Reader as BodyReader
from flows.serving.request import parse
from flows.serving.service import fetched
from flows.settings.sections import ServingSection
from tests.readers.damage import Reader, damaged_bytes, damaged_json, damaged_lines
from tests.readers.data import png

# Serving.


def asking() -> TestClient:
    app = FastAPI()
    app.exception_handler(HTTPException)(_one_line)
    limits = ServingSection(url_prefixes=["http://127.0.0.1:1/"])
    fetcher, reader = Fetcher(limits), BodyReader(limits)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        asked = await fetched(parse(await reader.read(request), limits), fetcher, limits)
        return JSONResponse({"bytes": len(asked.image)})

    return TestClient(app)


CLIENT = asking()


def make_json_request(folder: Path) -> None:
    question = {"image": base64.b64encode(png(1)).decode(), "class_names": ["cat", "dog"], "top_k": 2, "abstain": True,
                "threshold": 0.5}  # fmt: skip
    (folder / "body").write_text(json.dumps(question))


def make_form_request(folder: Path) -> None:
    parts = [
        b'name="top_k"\r\n\r\n2',
        b'name="class_names"\r\n\r\ncat',
        b'name="abstain"\r\n\r\ntrue',
        b'name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n' + png(1),
    ]
    body = b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--x--\r\n"
    (folder / "body").write_bytes(body)


def asked(kind: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        answer = CLIENT.post("/predict", content=(folder / "body").read_bytes(), headers={"content-type": kind})
        assert answer.status_code == 200 or 400 <= answer.status_code < 500
        assert answer.status_code == 200 or "\n" not in answer.json()["error"]

    return read


def make_length(folder: Path) -> None:
    (folder / "length").write_bytes(b"4")


def read_length(folder: Path) -> None:
    """The announced length, as a header has it: any Latin-1 text."""
    headers = [(b"content-type", b"application/json"), (b"content-length", (folder / "length").read_bytes())]
    answer = _asgi(headers, b'{"image": ""}')
    assert 400 <= answer < 500


def _asgi(headers: list[tuple[bytes, bytes]], body: bytes) -> int:
    import asyncio

    statuses = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
             "headers": headers, "http_version": "1.1", "scheme": "http", "client": None, "server": None,
             "root_path": ""}  # fmt: skip
    asyncio.run(CLIENT.app(scope, receive, send))
    return statuses[0]


def make_log(folder: Path) -> None:
    row = {"time": "2999-01-01T00:00:00+00:00", "name": "pets", "version": 1, "adapter_sha256": "x", "label": "cat",
           "probability": 0.5, "confidence": 0.5, "trained_classes": True, "strange": False,
           "expected": 0.05}  # fmt: skip
    (folder / "0.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, row, row | {"strange": True})))


def read_log(folder: Path) -> None:
    for found in drift(folder, 24):
        assert "\n" not in found.line


SECRET = "secret"


def make_delivery(folder: Path) -> None:
    event = {"entity": "model_version_alias", "action": "created", "data": {"name": "pets", "alias": "champion"}}
    (folder / "body").write_text(json.dumps(event))


def read_delivery(folder: Path) -> None:
    """Signed with the secret, whatever it holds."""
    body = (folder / "body").read_bytes()
    _deliver(body, "1000")


def read_stamp(folder: Path) -> None:
    with contextlib.suppress(Unverified):
        _deliver(b"{}", (folder / "length").read_bytes().decode("latin-1"))


def _deliver(body: bytes, stamp: str) -> None:
    signed = hmac.new(SECRET.encode(), f"1.{stamp}.".encode() + body, hashlib.sha256).digest()
    headers = {DELIVERY: "1", TIMESTAMP: stamp, SIGNATURE: f"v1,{base64.b64encode(signed).decode()}"}
    with contextlib.suppress(ValueError):  # which the listener answers by 401 and 400
        moved_alias(Deliveries(SECRET, clock=lambda: 1000.0).accept(headers, body))


READERS = [
    Reader("request in JSON", make_json_request, "body", damaged_json, asked("application/json")),
    Reader("request as a form", make_form_request, "body", damaged_bytes, asked("multipart/form-data; boundary=x")),
    Reader("length of a request", make_length, "length", damaged_bytes, read_length),
    Reader("log of predictions", make_log, "0.jsonl", damaged_lines, read_log),
    Reader("delivery of a webhook", make_delivery, "body", damaged_json, read_delivery),
    Reader("time of a delivery", make_length, "length", damaged_bytes, read_stamp),
]
