"""Moments that seldom come: who is cancelled as a slot is given back, a list that is given to its thread twice, a log
that cannot be written, bodies that say more than anybody reads."""

import asyncio
import inspect
import logging
import shutil
import threading
from typing import NamedTuple

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from flows.serving import pipeline
from flows.serving.class_lists import ClassLists
from flows.serving.follower import Live
from flows.serving.http.departure import Departure, Left
from flows.serving.http.doors import RateLimit
from flows.serving.pipeline import DECODERS, Pipeline, Slots
from flows.serving.prediction_log import PredictionLog
from flows.serving.request import Body, parse
from flows.settings.sections import ServingSection
from mmrl_core.predict import Prediction, Predictor
from tests.flows.serving.listening import all_of, listening
from tests.support.serving import NAME, app_of, picture

PATIENCE = 60


async def taken(slots: Slots) -> None:
    async with slots.one(Departure()):
        pass


def test_only_so_many_wait_for_a_slot_however_they_came(monkeypatch):
    monkeypatch.setattr(pipeline, "WAITING", 2)

    async def run() -> None:
        slots = Slots(1, PATIENCE)
        async with slots.one(Departure()):
            waiting = [asyncio.ensure_future(taken(slots)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(HTTPException) as full:
                await taken(slots)
            assert full.value.status_code == 503 and full.value.headers == {"Retry-After": "1"}
        await asyncio.gather(*waiting)
        await taken(slots)  # none was lost

    asyncio.run(run())


def test_a_body_that_does_not_come_is_given_up_where_its_question_is_one_too_many(predictor):
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    with listening(app_of(predictor), 0.3, most=0) as server, server.connect() as connection:
        connection.sendall(head + b"{")
        found = all_of(connection)
    assert found.status == 408 and "within 0.3 s" in found.error


def test_a_slot_passes_over_who_was_cancelled_and_has_not_run_since():
    async def run() -> None:
        slots = Slots(1, PATIENCE)
        async with slots.one(Departure()):
            first, second = (asyncio.ensure_future(taken(slots)) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.wait_for(second, PATIENCE)
        await asyncio.wait_for(taken(slots), PATIENCE)

    asyncio.run(run())


def test_who_is_cancelled_as_the_time_is_over_gives_no_slot_back_that_it_never_had():
    async def run() -> None:
        slots = Slots(1, PATIENCE)
        async with slots.one(Departure()):
            departure = Departure()

            async def waits() -> None:
                async with slots.one(departure):
                    pass

            waiting = asyncio.ensure_future(waits())
            await asyncio.sleep(0)
            departure.happen()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            other = asyncio.ensure_future(taken(slots))
            await asyncio.sleep(0)
            assert not other.done()  # there is one slot, and it is taken
        await other

    asyncio.run(run())


@pytest.mark.filterwarnings("error")
def test_what_is_wanted_by_who_has_left_already_is_not_begun():
    wanted, departure = asyncio.sleep(PATIENCE), Departure()
    departure.happen()
    with pytest.raises(Left):
        asyncio.run(departure.unless(wanted))
    assert inspect.getcoroutinestate(wanted) == inspect.CORO_CLOSED


def test_what_was_cancelled_before_its_turn_is_not_decoded():
    go, prepared = threading.Event(), []

    async def run() -> None:
        line = Pipeline(lambda jobs: jobs, 2)
        before = [asyncio.ensure_future(line.run(lambda: go.wait(PATIENCE))) for _ in range(DECODERS)]
        late = asyncio.ensure_future(line.run(lambda: prepared.append("late")))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*before)
        await line.run(lambda: prepared.append("next"))

    asyncio.run(run())
    assert prepared == ["next"]


def test_a_list_that_is_given_to_its_thread_twice_is_computed_and_settled_once(predictor):
    live, lists, problems = Slow(predictor), ClassLists(), []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        first = asyncio.ensure_future(lists.of(live, ["sun", "sea"]))  # keeps the thread
        left = asyncio.ensure_future(lists.of(live, ["cat", "dog"]))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        come = asyncio.ensure_future(lists.of(live, ["cat", "dog"]))
        await asyncio.sleep(0)
        live.go.set()
        lists._thread.submit(lambda: None).result(PATIENCE)  # behind all that it was given; the event loop stands
        await asyncio.gather(first, come)

    asyncio.run(run())
    assert live.computed == [["sun", "sea"], ["cat", "dog"]]
    assert problems == []


class Slow(Live):
    """Computes new classes once it is let."""

    def __init__(self, predictor: Predictor):
        super().__init__(NAME, 1, predictor)
        self.go, self.computed = threading.Event(), []

    def new_classes(self, class_names: list[str]):
        assert self.go.wait(PATIENCE)
        self.computed.append(class_names)
        return super().new_classes(class_names)


def test_the_seconds_to_wait_are_no_fewer_than_it_takes():
    limit = RateLimit(0.7, lambda: 0.0)
    limit.check()
    with pytest.raises(HTTPException) as refused:
        limit.check()
    assert refused.value.headers == {"Retry-After": "2"}  # 1.43 s


class Named(NamedTuple):
    """What the log asks of a job."""

    live: Live
    classes: object = None


def test_a_log_whose_folder_was_cleaned_away_goes_on_and_one_that_cannot_be_written_says_so_once(
    tmp_path, predictor, capfd
):
    log = PredictionLog(tmp_path / "log" / "0.jsonl", 1)
    job, answer = Named(Live(NAME, 1, predictor)), Prediction("one", 1.0, {}, 0.5)
    log.put(job, answer)
    shutil.rmtree(tmp_path / "log")
    log.put(job, answer)
    assert (tmp_path / "log" / "0.jsonl").read_text().count("\n") == 1
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "log").write_text("no folder")
    log.put(job, answer)
    log.put(job, answer)
    assert capfd.readouterr().err.count("cannot be logged") == 1
    (tmp_path / "log").unlink()
    log.put(job, answer)
    assert (tmp_path / "log" / "0.jsonl").exists()


def test_names_that_are_not_known_are_not_all_looked_at():
    """pydantic would make an error of each, while the event loop stands."""
    content = b"{" + b",".join(b'"key %d":1' % n for n in range(100_000)) + b"}"
    with pytest.raises(HTTPException) as refused:
        parse(Body("application/json", "application/json", content), ServingSection())
    assert refused.value.detail.startswith("key 0 is not known here; known: class_names")


def test_what_is_odd_in_a_form_is_not_written_down(predictor, caplog):
    lines = [b"--XX", b'Content-Disposition: form-data; name="image"; filename="a"', b"Content-Transfer-Encoding: odd"]
    content = b"\r\n".join([*lines, b"", picture(0), b"--XX--", b""])
    form = {"content-type": "multipart/form-data; boundary=XX"}
    with caplog.at_level(logging.NOTSET):
        found = TestClient(app_of(predictor)).post("/predict", content=content, headers=form)
    assert found.status_code == 200
    assert [record for record in caplog.records if record.name.startswith("python_multipart")] == []
