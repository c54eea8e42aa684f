"""The load of `python -m benchmarks.serving`: what it counts, of servers that are a few lines in the same loop. And its
peer: it answers as the library does."""

import asyncio
import contextlib

import pytest

from benchmarks.serving.load import Load, Plan, percentile
from benchmarks.serving.rate import Wanted, told
from benchmarks.serving.servers import MLFLOW, OURS
from mmrl_core.export import export_onnx
from mmrl_core.predict import Predictor
from tests.support.clients.connection import Connection, request, together
from tests.support.serving import in_base64, make_adapter, picture

QUESTION = request("/predict", {"image": "x"})
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
SILENT_BUSY = BUSY.replace(b"Retry-After: 1\r\n", b"")


@contextlib.asynccontextmanager
async def answering(*replies: bytes, when: asyncio.Event | None = None):
    """The port of a server that gives these replies in turn; an empty one closes the connection instead."""
    asked = 0

    async def answer(reader, writer) -> None:
        nonlocal asked
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readexactly(len(QUESTION))
                reply, asked = replies[asked % len(replies)], asked + 1
                if when:
                    await when.wait()
                writer.write(reply)
                if not reply or b"Connection: close" in reply:
                    break
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def plan(port: int, **more) -> Plan:
    return Plan(port, [QUESTION.decode()], **{"clients": 4, "seconds": 60, "most": 40} | more)


async def found(*replies: bytes, **more) -> dict:
    async with answering(*replies) as port:
        return await Load(plan(port, **more)).run()


def test_each_answer_is_counted_by_its_status_over_connections_that_stay_or_close():
    for reply in (OK, CLOSING):
        seen = asyncio.run(found(reply))
        assert seen["statuses"] == {"200": 40} and seen["hanging"] == seen["untold"] == 0
        assert seen["per_second"] == seen["answers_per_second"] > 0 and 0 < seen["p50_ms"] <= seen["p99_ms"]


def test_a_connection_that_closes_without_an_answer_is_a_question_lost():
    assert asyncio.run(found(OK, b"", clients=1, most=4))["statuses"] == {"200": 2, "0": 2}


def test_an_answer_that_the_server_is_busy_is_no_good_one_and_without_retry_after_it_is_told():
    seen = asyncio.run(found(OK, BUSY, SILENT_BUSY, SILENT_BUSY))
    assert seen["statuses"] == {"200": 10, "503": 30} and seen["untold"] == 20
    assert seen["answers_per_second"] == pytest.approx(4 * seen["per_second"])


def test_arrivals_that_find_no_free_connection_are_not_sent():
    async def pressed() -> dict:
        held = asyncio.Event()
        async with answering(OK, when=held) as port:
            load = Load(plan(port, clients=2, rate=1000, most=2))  # both are held, so `most` is reached at once
            load.over = lambda: load.unsent > 10
            running = asyncio.ensure_future(load.run())
            while load.unsent <= 10:
                await asyncio.sleep(0)
            held.set()
            return await running

    seen = asyncio.run(pressed())
    assert seen["unsent"] > 10 and seen["statuses"] == {"200": 2}


def test_a_question_in_pieces_arrives_whole_and_many_at_once_are_each_answered():
    async def pieces() -> tuple:
        async with answering(OK) as port:
            slow = await Connection(port).ask(QUESTION[:9], QUESTION[9:30], QUESTION[30:], pause=0.01)
            return slow, await together(port, [QUESTION] * 30)

    slow, many = asyncio.run(pieces())
    assert (slow.status, slow.body) == (200, b"ok") and [answer.status for answer in many] == [200] * 30


def test_percentiles_and_ratios_are_of_what_was_found(capsys):
    assert percentile([0.001 * number for number in range(1, 101)], 0.99) == 100 and percentile([], 0.5) is None
    figures = {OURS: {"rate": 600.0}, MLFLOW: {"rate": 100.0}}
    told("rates", [], figures, [Wanted("rate", "rate", MLFLOW, 5), Wanted("rate", "rate", MLFLOW, 7)])
    few, many = capsys.readouterr().out.splitlines()[-2:]
    assert "6.00 of mlflow (wanted: at least 5.00)" in few and "NOT KEPT" in many and "NOT KEPT" not in few


@pytest.mark.slow
def test_the_plain_peer_answers_as_the_predictor_does(tmp_path, monkeypatch):
    predictor = Predictor.load(make_adapter(tmp_path / "adapter", 0))
    export_onnx(predictor, tmp_path / "onnx")
    monkeypatch.setenv("MODEL", str(tmp_path / "onnx"))
    from benchmarks.serving import plain

    for size in ((40, 30), (30, 41), (64, 64)):
        image = picture(1, size)
        answer = plain.predict(plain.Question(image=in_base64(image)))
        assert answer["probabilities"] == pytest.approx(predictor.predict([image])[0].probabilities, abs=1e-5)
