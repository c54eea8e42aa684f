"""Who may ask, and how often."""

import httpx
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from flows.serving.http import doors
from flows.serving.http.doors import RateLimit, is_loopback
from mmrl_core.errors import UserError
from tests.flows.serving.listening import listening
from tests.support.serving import app_of, in_base64, picture


@pytest.mark.parametrize("key", ["", " ", "sesame\n", "ses ame", "\tsesame", "sésame", "opensesame\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(monkeypatch, key):
    monkeypatch.setenv(doors.KEY, key)
    with pytest.raises(UserError, match="^MMRL_API_KEY (is empty|has a blank)") as refused:
        doors.key_sha256()
    assert "\n" not in str(refused.value)


def test_a_key_that_a_header_can_carry_opens(monkeypatch, predictor):
    key = "!#$%&'*+-./:;<=>?@[]^_`{|}~aZ09\"\\"
    monkeypatch.setenv(doors.KEY, key)
    assert doors.key_sha256()
    question = {"image": in_base64(picture(0))}
    with listening(app_of(predictor, key=key)) as server:
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            assert httpx.post(f"{server.address}/predict", json=question, headers=headers).status_code == 200
        assert httpx.post(f"{server.address}/predict", json=question).status_code == 401
    monkeypatch.delenv(doors.KEY)
    assert doors.key_sha256() is None


@pytest.mark.parametrize(("host", "own"), [
    ("127.0.0.1", True), ("127.0.0.1:8000", True), ("localhost:8000", True), ("LOCALHOST", True), ("[::1]:8000", True),
    ("[::1]", True), ("::1", True), ("127.8.9.1", True), ("localhost.", True), ("evil.example", False), ("", False),
    ("evil.example:127", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False),
    ("192.0.2.1", False), ("0.0.0.0", False), ("[2001:db8::1]:80", False), ("127.0.0.1@evil.example", False),
])  # fmt: skip
def test_on_loopback_without_a_key_only_names_of_this_machine_are_answered(predictor, host, own):
    assert is_loopback(host) is own
    client = TestClient(app_of(predictor, loopback=True), base_url="http://127.0.0.1")
    for path in ("/", "/healthz", "/classes", "/openapi.json"):
        found = client.get(path, headers={"Host": host})
        assert found.status_code == (200 if own else 403)
        assert own or found.json()["error"].startswith("the Host header is no name of this machine; ask for 127.0.0.1")
    assert TestClient(app_of(predictor)).get("/healthz", headers={"Host": host}).status_code == 200


def test_questions_beyond_the_rate_are_told_when_to_come_again():
    now = [0.0]
    rate = RateLimit(2, lambda: now[0])
    rate.check()
    rate.check()
    for later in (0.0, 0.4):
        now[0] = later
        with pytest.raises(HTTPException) as refused:
            rate.check()
        assert refused.value.status_code == 429 and refused.value.headers == {"Retry-After": "1"}
    now[0] = 0.5
    rate.check()
    now[0] = 100
    for _ in range(2):  # rest is not saved beyond a second's
        rate.check()
    with pytest.raises(HTTPException):
        rate.check()
    slow = RateLimit(0.1, lambda: now[0])
    slow.check()
    with pytest.raises(HTTPException, match="more than 0.1 questions a second; ask again in 10 s"):
        slow.check()
    for _ in range(1000):
        RateLimit(None).check()


def test_only_questions_count_for_the_rate(predictor):
    client = TestClient(app_of(predictor, rate_limit=0.001))
    question = {"image": in_base64(picture(0))}
    assert client.post("/predict", json=question).status_code == 200
    refused = client.post("/predict", json=question)
    assert refused.status_code == 429 and refused.headers["retry-after"] and list(refused.json()) == ["error"]
    assert client.get("/classes").status_code == client.get("/healthz").status_code == 200
