import json
import os
import threading
import urllib.error
import urllib.request

import pytest

from flows.orchestration.webhook import (
    DELIVERY,
    SIGNATURE,
    TIMESTAMP,
    TOLERANCE,
    Deliveries,
    Unverified,
    moved_alias,
    server,
)
from flows.tracking.store import ENVIRONMENT

EVENT = {"entity": "model_version_alias", "action": "created", "timestamp": "2026-11-26T00:00:00",
         "data": {"name": "digits-base-to-novel", "alias": "champion", "version": "3"}}  # fmt: skip
SECRET, NOW = "a secret of some length", 1_800_000_000


def delivery(event=EVENT, number="one", at=NOW, secret=SECRET) -> tuple[dict[str, str], bytes]:
    for name, value in ENVIRONMENT.items():  # before MLflow is imported, which reads it
        os.environ.setdefault(name, value)
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = json.dumps(event)
    signature = _generate_hmac_signature(secret, number, str(at), body)
    return {DELIVERY: number, TIMESTAMP: str(at), SIGNATURE: signature}, body.encode()


def test_what_mlflow_signed_is_accepted_once_while_it_is_fresh():
    deliveries = Deliveries(SECRET, clock=lambda: NOW + 5)
    assert moved_alias(deliveries.accept(*delivery())) == ("digits-base-to-novel", "champion")
    with pytest.raises(Unverified, match="came before"):
        deliveries.accept(*delivery())
    assert deliveries.accept(*delivery(number="two")) == EVENT
    with pytest.raises(Unverified, match="too old"):
        Deliveries(SECRET, clock=lambda: NOW + TOLERANCE + 1).accept(*delivery())


@pytest.mark.parametrize("part", [DELIVERY, TIMESTAMP, SIGNATURE, "body", "secret", "nothing"])
def test_what_was_changed_on_the_way_is_not(part):
    headers, body = delivery(secret="another" if part == "secret" else SECRET)
    if part in headers:
        headers[part] = headers[part][:-1] + ("0" if headers[part][-1] != "0" else "1")
    if part == "body":
        body = body.replace(b"champion", b"challenge")
    with pytest.raises(Unverified, match="signature"):
        Deliveries(SECRET, clock=lambda: NOW).accept({} if part == "nothing" else headers, body)


def test_other_events_move_nothing():
    assert moved_alias({**EVENT, "action": "deleted"}) is None
    assert moved_alias({"entity": "registered_model", "action": "created"}) is None


def test_the_server_says_what_became_of_a_delivery():
    import time

    moves: list[tuple[str, str]] = []
    with server("127.0.0.1", 0, SECRET, lambda *move: moves.append(move)) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()

        def post(headers: dict[str, str], body: bytes) -> int:
            request = urllib.request.Request(f"http://127.0.0.1:{listening.server_address[1]}", body, headers)
            try:
                return urllib.request.urlopen(request, timeout=10).status
            except urllib.error.HTTPError as error:
                return error.code

        now = int(time.time())
        assert post(*delivery(at=now)) == 204
        assert post(*delivery(at=now)) == 401
        assert post(*delivery(at=now, number="two", secret="guessed")) == 401
        assert post({}, b"x" * 70_000) == 413
        assert [post({"Content-Length": length}, b"") for length in ("9" * 18, "9" * 5000, "²")] == [413, 411, 411]
        assert post(*delivery([1, 2], at=now, number="three")) == 400
        listening.shutdown()
    assert moves == [("digits-base-to-novel", "champion")]
