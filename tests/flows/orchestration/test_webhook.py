import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from flows.orchestration import webhook
from flows.orchestration.webhook import (
    DELIVERY,
    SIGNATURE,
    TIMESTAMP,
    TOLERANCE,
    Deliveries,
    Listener,
    Unverified,
    moved_alias,
)
from flows.tracking.store import ENVIRONMENT
from tests.support.processes import PATIENCE, wait_until

EVENT = {"entity": "model_version_alias", "action": "created", "timestamp": "2026-11-26T00:00:00",
         "data": {"name": "digits-base-to-novel", "alias": "champion", "version": "3"}}  # fmt: skip
SECRET, NOW = "a secret of some length", 1_800_000_000


def delivery(event=EVENT, number="one", at=NOW, secret=SECRET, body=None) -> tuple[dict[str, str], bytes]:
    """As MLflow sends it; `body` in place of an event's JSON."""
    for name, value in ENVIRONMENT.items():  # before MLflow is imported, which reads it
        os.environ.setdefault(name, value)
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = json.dumps(event) if body is None else body
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


@pytest.mark.parametrize(
    "data", [None, [1], "champion", 7, {}, {"name": "digits", "alias": 3}, {"name": [], "alias": "a"}]
)
def test_an_alias_that_moved_is_one_of_a_model_and_both_are_texts(data):
    with pytest.raises(ValueError, match="which model and alias"):
        moved_alias({**EVENT, "data": data})


class Place(Listener):
    """Listens on a free port, and keeps what moved."""

    def __init__(self):
        self.moves: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), SECRET, lambda *move: self.moves.append(move))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.server_address, timeout=PATIENCE)

    def raw(self, request: bytes, ends: bool = False) -> int | None:
        """The status that answers these bytes, nothing sent after them; None where the connection is closed."""
        with self.connect() as sender:
            with contextlib.suppress(ConnectionError):  # refused before all was sent
                sender.sendall(request)
                if ends:
                    sender.shutdown(socket.SHUT_WR)
            return status(sender)

    def post(self, headers, body: bytes, *more: bytes, length: bytes | None = None) -> int | None:
        length = str(len(body)).encode() if length is None else length
        lines = [f"{name}: {value}".encode("latin-1") for name, value in headers.items()]
        lines = [b"POST / HTTP/1.1", b"Host: x", b"Content-Length: " + length, *lines, *more]
        return self.raw(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def deliver(self, number: str) -> int | None:
        return self.post(*delivery(number=number, at=int(time.time())))


def status(sender: socket.socket) -> int | None:
    with contextlib.suppress(ConnectionError):
        answer = sender.recv(4096)
        return int(answer.split()[1]) if answer else None
    return None


@pytest.fixture
def place(capfd) -> Iterator[Place]:
    """Afterwards a good delivery is still taken, nothing is on stderr, and no thread is left."""
    before = set(threading.enumerate())
    with Place() as listening:
        serving = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        serving.start()
        yield listening
        taken = len(listening.moves)
        assert listening.deliver("the last") == 204
        assert len(listening.moves) == taken + 1
        listening.shutdown()
        serving.join()
    wait_until(lambda: before.issuperset(threading.enumerate()), PATIENCE, lambda: str(threading.enumerate()))
    assert capfd.readouterr() == ("", "")


def test_the_server_says_what_became_of_a_delivery(place):
    now = int(time.time())
    assert place.deliver("one") == 204
    assert place.deliver("one") == 401
    assert place.post(*delivery(at=now, number="two", secret="guessed")) == 401
    assert place.post(*delivery({**EVENT, "action": "deleted"}, at=now, number="three")) == 204
    assert place.moves == [("digits-base-to-novel", "champion")]


DEEP = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    "body",
    ["[1, 2]", "7", "null", '"text"', "", "no JSON", DEEP, '{"a": ' * 9000, '{"entity": "\\ud800"}', "NaN", "9" * 5000,
     json.dumps({**EVENT, "data": ["champion"]}), json.dumps({**EVENT, "data": {"name": {}, "alias": None}})],
    ids=lambda body: body[:30],
)  # fmt: skip
def test_what_is_signed_and_says_nothing_is_400(place, body):
    assert place.post(*delivery(at=int(time.time()), body=body)) == 400
    assert place.moves == []


def test_events_of_other_kinds_are_taken_and_move_nothing(place):
    for number, odd in enumerate(({"entity": []}, {"entity": {"a": 1}, "action": 3}, {}, {"data": [[]]})):
        assert place.post(*delivery(odd, number=str(number), at=int(time.time()))) == 204
    assert place.moves == []


def test_a_length_that_is_not_stated_in_one_way_is_411_and_one_too_large_413(place):
    wrong = (b"-1", b"+3", b"3.0", b"", b"9" * 5000, b"\xb2", b"0x3", b"3, 3")
    assert [place.post({}, b"abc", length=length) for length in wrong] == [411] * len(wrong)
    assert place.post({}, b"abc", b"Content-Length: 4") == 411
    assert place.raw(b"POST / HTTP/1.1\r\n\r\n") == 411
    assert place.post({}, b"3\r\nabc\r\n0\r\n\r\n", b"Transfer-Encoding: chunked") == 411
    assert [place.post({}, b"", length=length) for length in (b"9" * 18, b"65537")] == [413, 413]


def test_headers_that_nobody_sends_verify_nothing(place):
    headers, body = delivery(at=int(time.time()))
    for name in headers:
        for value in ("", "\xe9\xff", "\x01\x7f", "v1," * 9000, "\r\n folded"):
            assert place.post(headers | {name: value}, body) == 401
        assert place.post({other: value for other, value in headers.items() if other != name}, body) == 401
    assert place.post(headers, body, *(b"X-%d: 1" % number for number in range(5000))) == 431
    assert place.post(headers, body, b"X: " + b"a" * 200_000) == 431
    assert place.moves == []
    assert place.post(headers, body, b"\xff\xfe: 1", b"no colon", b": ", b"\0: \0") == 204


@pytest.mark.parametrize(
    ("request_", "answer"),
    [(b"\0\1\2\r\n\r\n", 400), (b"POST / HTTP/9.9\r\n\r\n", 505), (b"POST / HTTP/x\r\n\r\n", 400),
     (b"GET / HTTP/1.1\r\n\r\n", 501), (b"POST /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
     (b"a b c d e\r\n\r\n", 400),
     (b"\xff\xfe / HTTP/1.1\r\n\r\n", 501), (b"\r\n\r\n", None), (b"\x16\x03\x01\x02\0\1\0\n", 400)],
    ids=lambda part: str(part)[:20],
)  # fmt: skip
def test_what_is_no_delivery_at_all_is_refused(place, request_, answer):
    assert place.raw(request_, ends=True) == answer


def test_half_a_delivery_is_400_and_a_second_one_in_its_connection_is_not_read(place):
    headers, body = delivery(at=int(time.time()))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    whole = f"POST / HTTP/1.1\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body
    assert place.raw(whole[:-7], ends=True) == 400
    assert place.raw(whole[:30], ends=True) in (411, 400)
    assert place.raw(whole * 2) == 204
    assert place.moves == [("digits-base-to-novel", "champion")]


def test_senders_that_leave_are_no_error(place):
    for sent in (b"", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", b"x" * 100_000):
        with contextlib.suppress(ConnectionError), place.connect() as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leaves with a reset
            sender.sendall(sent)


def test_many_that_send_nothing_keep_no_delivery_out(place):
    before = threading.active_count()
    with contextlib.ExitStack() as idle:
        for _ in range(100):
            idle.enter_context(place.connect()).sendall(b"P")
        assert place.deliver("one") == 204
        wait_until(lambda: threading.active_count() - before <= webhook.MOST, PATIENCE, lambda: "the end of threads")


def test_a_sender_that_takes_too_long_is_ended(place, monkeypatch):
    monkeypatch.setattr(webhook, "SENDING", 0)
    with place.connect() as sender:
        sender.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
        assert status(sender) in (400, None)  # whether its head came in time
    monkeypatch.undo()
