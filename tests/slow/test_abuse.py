"""`mmrl serve` under clients that mean no good: it goes on answering, says promptly that it lives, and stays small.

A watcher in a process of its own asks /healthz all the while, and a trivial server in turn: what that one took longest
is the machine's share.
"""

import asyncio
import json
import resource
import signal
from collections import Counter
from collections.abc import Coroutine
from typing import NamedTuple, TypeVar

import hypothesis
import pytest
import schemathesis
from schemathesis.generation import GenerationMode

from tests.support import serving
from tests.support.clients.connection import Answer, Connection, request, together
from tests.support.clients.resources import megabytes
from tests.support.clients.watch import watching
from tests.support.processes import PATIENCE, processes_with, wait_until
from tests.support.serving import in_base64, picture
from tests.support.workspace import write_params

pytestmark = pytest.mark.slow

T = TypeVar("T")
GOOD = request("/predict", {"image": in_base64(picture(0))})
GROWTH = 500  # MB


class Abused(NamedTuple):
    """A server, the port it is on, and its MB once it had answered."""

    server: serving.Server
    port: int
    memory: float


@pytest.fixture(scope="module")
def abused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    write_params(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server inherits it
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            patch.chdir(folder)
            assert serving.register(1) == 1
            serving.promote(1)
            with serving.serve(folder, "--set", "serving.request_seconds=5") as server:
                for number in range(20):
                    assert server.predict(picture(number)).status_code == 200
                yield Abused(server, int(server.address.rpartition(":")[2]), megabytes(server.token))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def port(abused):
    """The port of the server; after the test it must have lived, and live, as if nothing had been."""
    with watching(abused.server.address) as seen:
        yield abused.port
        assert abused.server.predict(picture(0)).status_code == 200
        watched = seen()
    assert watched.fine, watched
    assert abused.server.process.poll() is None
    assert megabytes(abused.server.token) < abused.memory + GROWTH


def counted(answers: list[Answer]) -> Counter:
    """Statuses; asserts that each answer is one that a client can act upon."""
    for answer in answers:
        told = json.loads(answer.body) if answer.status else {}
        if answer.status == 503:
            assert int(answer.retry_after or 0) > 0, answer
        if answer.status != 200:
            assert answer.status < 500 or answer.status == 503, answer
            assert not answer.status or (list(told) == ["error"] and "\n" not in told["error"]), answer
    return Counter(answer.status for answer in answers)


def bounded(asked: Coroutine[object, object, T]) -> T:
    """What it gives, unless it hangs."""

    async def in_time() -> T:
        async with asyncio.timeout(PATIENCE):
            return await asked

    return asyncio.run(in_time())


def ask(port: int, *questions: bytes) -> Counter:
    return counted(bounded(together(port, list(questions))))


def test_clients_that_send_a_part_and_wait_are_told_off_and_keep_nobody_waiting(port):
    head, _, _ = GOOD.partition(b"\r\n\r\n")

    async def slow_and_others() -> tuple[list[Answer], list[Answer]]:
        slow = asyncio.ensure_future(together(port, [head + b"\r\n\r\n{"] * 100 + [head[: len(head) // 2]] * 100))
        await asyncio.sleep(0)  # they are on their way before the others
        others, connection = [], Connection(port)
        while not slow.done():
            others.append(await connection.ask(GOOD))
        connection.close()
        return await slow, others

    slow, others = bounded(slow_and_others())
    assert counted(others) == {200: len(others)} and len(others) > 20
    assert counted(slow[:100]) == {408: 100}
    assert set(counted(slow[100:])) <= {408, 0}  # there is no question yet: it may just be closed


def test_of_fifteen_hundred_questions_at_once_each_is_answered_or_told_when_to_come_again(port):
    statuses = ask(port, *[GOOD] * 1500)
    assert set(statuses) <= {200, 503} and statuses[200] > 16


SIZE = 14_000_000  # bytes, just below what an image of `max_bytes` in base64 takes
HUGE = {
    "numbers": b"[" + b"1," * (SIZE // 2 - 50) + b"1]",
    "names": b"[" + b'"a",' * (SIZE // 4 - 50) + b'"a"]',
    "lists": b"[" + b"[]," * (SIZE // 3 - 50) + b"[]]",
    "deep": b"[" * (SIZE // 2 - 50) + b"]" * (SIZE // 2 - 50),
    "objects": b'{"a":' * (SIZE // 6 - 50) + b"1" + b"}" * (SIZE // 6 - 50),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_list_is_refused_by_its_length(port, kind):
    body = b'{"image": "' + in_base64(picture(0)).encode() + b'", "class_names": ' + HUGE[kind] + b"}"
    assert set(ask(port, *[request("/predict", body)] * 3)) <= {400, 422, 503}


def test_headers_have_their_bounds(port):
    many = {f"x-{number}": "y" * 10 for number in range(3000)}
    assert ask(port, request("/predict", {}, x=100_000 * "y")) == {431: 1}
    assert ask(port, request("/predict", {}, **many)) == {431: 1}
    assert set(ask(port, *[request("/predict", {}, x=3_000_000 * "y")] * 3)) <= {431, 0}  # gone while it still sends


def test_odd_bodies_against_the_description_get_a_4xx(abused, port):
    operation = schemathesis.openapi.from_url(f"{abused.server.address}/openapi.json")["/predict"]["POST"]
    statuses = Counter()

    @hypothesis.given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    @hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    def one(case) -> None:
        answer = case.call()
        statuses.update(counted([Answer(answer.status_code, (answer.headers.get("retry-after") or [None])[0],
                                        answer.content)]))  # fmt: skip

    one()
    assert statuses.total() >= 40


def test_after_sigterm_every_question_that_it_has_is_answered(abused):
    async def asked_and_ended() -> list[Answer]:
        waiting = asyncio.ensure_future(together(abused.port, [GOOD] * 100))
        first = Connection(abused.port)
        await first.ask(GOOD)  # its answer says that the server has come to the others
        abused.server.process.send_signal(signal.SIGTERM)
        return await waiting

    assert counted(bounded(asked_and_ended())) == {200: 100}
    assert abused.server.process.wait(60) == 0
    wait_until(lambda: not processes_with(abused.server.token), 20, lambda: str(processes_with(abused.server.token)))
