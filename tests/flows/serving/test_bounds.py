"""No wait without an end: heads, bodies, connections, the queue, new lists of classes; over real sockets."""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import HTTPException

from flows.serving.app import create_app
from flows.serving.class_lists import LISTS, ClassLists
from flows.serving.follower import Follower, Live, PredictionJob
from flows.serving.http import protocol
from flows.serving.http.departure import Departure, Left
from flows.serving.metrics import Metrics
from flows.serving.pipeline import Pipeline, Slots
from flows.serving.service import Service
from flows.settings.sections import ServingSection
from mmrl_core.predict import Classes, Predictor
from tests.flows.serving.listening import all_of, listening
from tests.support.processes import wait_until
from tests.support.serving import NAME, URI, app_of, in_base64, picture

HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
PATIENCE = 60


@pytest.mark.parametrize("sent", [b"", b"POST /predict HT", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: 127."])
def test_a_head_that_does_not_come_is_given_up(predictor, monkeypatch, sent):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    with listening(app_of(predictor)) as server, server.connect() as connection:
        connection.sendall(sent)
        found = all_of(connection)
    assert (found.status, found.error) == (408, "the head of the request did not come within 0.2 s; send it again")


def test_the_second_head_of_a_connection_is_given_up_too(predictor, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    with listening(app_of(predictor)) as server, server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"\r\n")
        assert all_of(connection).status == 408


def test_a_body_that_does_not_come_is_given_up(predictor):
    app = app_of(predictor, request_seconds=0.3)
    with listening(app, 0.3) as server, server.connect() as connection:
        connection.sendall(HEAD + b"{")
        found = all_of(connection)
    assert found.status == 408 and "within 0.3 s" in found.error


def test_who_goes_on_sending_after_the_answer_is_hung_up_on(predictor):
    head = HEAD.replace(b"1000", b"100000000")
    with listening(app_of(predictor), 0.3) as server, server.connect() as connection:
        connection.sendall(head + b"{")
        found = all_of(connection)
    assert found.status == 413


def test_slow_clients_take_no_place_from_others(predictor):
    image = {"image": in_base64(picture(0))}
    with listening(app_of(predictor, batch_size=1)) as server:
        slow = [server.connect() for _ in range(200)]
        try:
            for connection in slow:
                connection.sendall(HEAD + b"{")
            assert httpx.get(f"{server.address}/healthz").status_code == 200
            assert httpx.post(f"{server.address}/predict", json=image).status_code == 200
        finally:
            for connection in slow:
                connection.close()


@pytest.mark.parametrize(("head", "status", "says"), [
    (b"GET /healthz HTTP/1.1\r\n" + b"X-A: 1\r\n" * 5000 + b"\r\n", 431, "headers; send less"),
    (b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(150)) + b"\r\n", 431, "100 headers"),
    (b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 5_000_000, 431, "more than 32768 bytes; send less"),
    (b"GET /" + b"a" * 5_000_000, 431, "more than 32768 bytes; send less"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "this is no HTTP/1.1 request; correct it"),
    (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "this is no HTTP/1.1 request; correct it"),
])  # fmt: skip
def test_odd_heads_are_one_line_and_the_end(predictor, head, status, says):
    with listening(app_of(predictor)) as server:
        with server.connect() as connection:
            sending = threading.Thread(target=send, args=(connection, head))  # it may be hung up on meanwhile
            sending.start()
            found = all_of(connection)
            sending.join(PATIENCE)
        assert found.status == status and says in found.error, found
        assert httpx.get(f"{server.address}/healthz").status_code == 200


def send(connection, content: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        connection.sendall(content)


def test_more_connections_than_the_process_may_have_are_told_to_come_again(predictor, monkeypatch):
    monkeypatch.setattr(protocol, "_open_files", lambda: protocol.MORE_FILES + 2)
    with listening(app_of(predictor)) as server, server.connect(), server.connect(), server.connect() as third:
        found = all_of(third)
    assert (found.status, found.headers["retry-after"], found.error) == (
        503,
        "1",
        "too many connections; ask again in 1 s",
    )


def test_a_question_that_comes_as_the_server_ends_is_answered(predictor, monkeypatch):
    monkeypatch.setattr(protocol, "ENDING_SECONDS", PATIENCE)
    with listening(app_of(predictor)) as server, server.connect() as kept, server.connect() as new:
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in kept.recv(65536)
        server.server.should_exit = True
        wait_until(lambda: not server.server.servers[0].is_serving(), PATIENCE, lambda: "the end")
        for connection in (kept, new):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            found = all_of(connection)
            assert (found.status, found.headers["connection"]) == (200, "close")


class Held(Predictor):
    """Scores once it is let, and counts what it has scored."""

    def __init__(self, predictor: Predictor):
        self.__dict__.update(predictor.__dict__)
        self.began, self.go, self.sizes = threading.Event(), threading.Event(), []

    def score(self, views, classes, top_k=None):
        self.began.set()
        assert self.go.wait(PATIENCE)
        self.sizes.append(len(views))
        return super().score(views, classes, top_k)


def ask(address: str, seed: int = 0) -> httpx.Response:
    return httpx.post(f"{address}/predict", json={"image": in_base64(picture(seed))}, timeout=PATIENCE)


def test_who_waits_too_long_for_the_model_is_told_to_come_again_and_health_is_told_meanwhile(predictor):
    held = Held(predictor)
    app = app_of(held, batch_size=1, queue_seconds=0.2)
    with listening(app) as server, ThreadPoolExecutor(8) as clients:
        first = [clients.submit(ask, server.address) for _ in range(4)]  # as many as there are slots
        wait_until(lambda: held.began.is_set() and in_flight(server.address) == 5, PATIENCE, lambda: "four")
        late = ask(server.address)
        assert httpx.get(f"{server.address}/healthz").status_code == 200
        assert "mmrl_requests_in_flight" in httpx.get(f"{server.address}/metrics").text
        held.go.set()
        assert [one.result().status_code for one in first] == [200] * 4
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    assert late.json() == {"error": "the model was not free for 0.2 s; ask again in 1 s"}


def in_flight(address: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("mmrl_requests_in_flight ")).split()[1])


def test_an_answer_that_takes_longer_than_a_request_may_is_503(predictor):
    held = Held(predictor)
    with listening(app_of(held, request_seconds=0.2)) as server:
        late = ask(server.address)
        held.go.set()
    assert late.status_code == 503 and "took more than 0.2 s; ask again" in late.json()["error"]


def test_what_waits_while_a_batch_is_scored_is_the_next_batch_and_who_has_left_is_not_in_it(predictor):
    held = Held(predictor)
    with listening(app_of(held, batch_size=4)) as server, ThreadPoolExecutor(16) as clients:
        first = clients.submit(ask, server.address)
        assert held.began.wait(PATIENCE)
        others = [clients.submit(ask, server.address, seed) for seed in range(7)]  # the rest of the slots
        wait_until(lambda: in_flight(server.address) == 9, PATIENCE, lambda: "all of them")
        leaving = server.connect()
        body = b'{"image": "%s"}' % in_base64(picture(0)).encode()
        leaving.sendall(HEAD.replace(b"1000", str(len(body)).encode()) + body)
        wait_until(lambda: in_flight(server.address) == 10, PATIENCE, lambda: "who leaves")
        leaving.close()
        wait_until(lambda: in_flight(server.address) == 9, PATIENCE, lambda: "who has left")
        held.go.set()
        assert {one.result().status_code for one in (first, *others)} == {200}
        assert 'status="499"} 1.0' in httpx.get(f"{server.address}/metrics").text
    assert held.sizes[0] == 1 and sum(held.sizes) == 8 and max(held.sizes) == 4


def test_who_comes_when_too_many_wait_is_sent_away_at_once_and_may_ask_again_on_the_same_connection(predictor):
    held, question = Held(predictor), {"image": in_base64(picture(0))}
    with listening(app_of(held), most=2) as server, ThreadPoolExecutor(2) as clients:
        first = [clients.submit(ask, server.address) for _ in range(2)]
        wait_until(lambda: in_flight(server.address) == 3, PATIENCE, lambda: "two")
        with httpx.Client(base_url=server.address, timeout=PATIENCE) as client:
            for _ in range(2):  # the second is not read for a second
                away = client.post("/predict", json=question)
                assert (away.status_code, away.headers["retry-after"]) == (503, "1")
                assert away.json() == {"error": "too many questions wait already; ask again in 1 s"}
            assert client.get("/healthz").status_code == 200
            held.go.set()
            assert {one.result().status_code for one in first} == {200}
            wait_until(lambda: in_flight(server.address) == 1, PATIENCE, lambda: "none")
            assert client.post("/predict", json=question).status_code == 200


async def taken(slots: Slots) -> None:
    async with slots.one(Departure()):
        pass


def test_a_slot_that_was_given_to_who_is_cancelled_at_that_moment_is_not_lost():
    async def run() -> None:
        slots = Slots(1, PATIENCE)
        async with slots.one(Departure()):
            waiting = asyncio.ensure_future(taken(slots))
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(taken(slots), PATIENCE)

    asyncio.run(run())


def test_a_failure_of_a_batch_reaches_each_of_it_and_the_next_is_scored():
    def score(jobs: list[PredictionJob]) -> list:
        if jobs[0].top_k == 1:
            raise ValueError("no")
        return [{"label": job.top_k} for job in jobs]

    async def run() -> None:
        line = Pipeline(score, 2)
        with pytest.raises(ValueError, match="no"):
            await line.run(lambda: PredictionJob(None, None, None, 1))
        assert await line.run(lambda: PredictionJob(None, None, None, 2)) == {"label": 2}
        assert await line.run(lambda: "what is no job") == "what is no job"

    asyncio.run(run())


class Listed(Live):
    """Computes new classes once it is let."""

    def __init__(self, predictor: Predictor):
        super().__init__(NAME, 1, predictor)
        self.began, self.go, self.computed = threading.Event(), threading.Event(), []

    def new_classes(self, class_names: list[str]) -> Classes:
        self.began.set()
        assert self.go.wait(PATIENCE)
        self.computed.append(class_names)
        return super().new_classes(class_names)


def test_a_new_list_is_computed_once_for_all_who_ask_and_not_for_who_has_left(predictor):
    live, lists = Listed(predictor), ClassLists()

    async def run() -> None:
        asking = [asyncio.ensure_future(lists.of(live, ["cat", "dog"])) for _ in range(3)]
        departure = Departure()
        left = asyncio.ensure_future(departure.unless(lists.of(live, ["owl", "fox"])))
        await asyncio.to_thread(live.began.wait, PATIENCE)
        departure.happen()
        with pytest.raises(Left):
            await left
        again = asyncio.ensure_future(lists.of(live, ["sun", "sea"]))
        await asyncio.sleep(0)
        live.go.set()
        first, *others = await asyncio.gather(*asking)
        assert all(other is first for other in others)
        await again

    asyncio.run(run())
    assert live.computed == [["cat", "dog"], ["sun", "sea"]]


def test_only_so_many_new_lists_wait_and_known_ones_never_do(predictor):
    live, lists = Listed(predictor), ClassLists()

    async def run() -> None:
        live.go.set()
        known = await lists.of(live, ["cat", "dog"])
        live.go.clear()
        asking = [asyncio.ensure_future(lists.of(live, ["one", f"class {n}"])) for n in range(LISTS + 1)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as full:
            await lists.of(live, ["too", "many"])
        assert full.value.status_code == 503 and full.value.headers == {"Retry-After": "5"}
        assert await lists.of(live, ["cat", "dog"]) is known
        live.go.set()
        await asyncio.gather(*asking)

    asyncio.run(run())


def test_questions_among_known_classes_are_answered_while_a_new_list_is_computed(predictor):
    live, follower, settings = Listed(predictor), Follower(URI, "sqlite:///none.db", 1), ServingSection(batch_size=1)
    follower.current, metrics = live, Metrics(follower)
    app = create_app(settings, Service(settings, follower, metrics), metrics)
    with listening(app) as server, ThreadPoolExecutor(8) as clients:
        question = {"image": in_base64(picture(0)), "class_names": ["cat", "dog"]}
        many = [clients.submit(httpx.post, f"{server.address}/predict", json=question, timeout=PATIENCE)
                for _ in range(6)]  # fmt: skip
        assert live.began.wait(PATIENCE)
        assert ask(server.address).status_code == 200
        live.go.set()
        assert {one.result().status_code for one in many} == {200}
