"""The way of an image through threads: decoded by a few, then scored by one in batches of whatever is ready.

A question has a slot from before its image is decoded until it is scored. There are two for each place in a batch, so
that the next batch is decoded while one is scored; whoever finds none waits in turn, for a bounded time.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, NamedTuple, TypeVar

from flows.serving.busy import busy
from flows.serving.follower import PredictionJob
from flows.serving.http.departure import Departure, Left

DECODERS = 2  # threads; each holds one image at full size
WAITING = 1000  # questions that may wait
T = TypeVar("T")


class Slots:
    """So many questions may be worked on at a time; others wait in turn, WAITING of them at most and for `seconds` at
    most. http/protocol.py refuses most of what is too much before that, but not what expects 100-continue, comes
    behind another question, or writes its path in another way."""

    def __init__(self, number: int, seconds: float):
        self._free, self._seconds = number, seconds
        self._turns: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def one(self, departure: Departure) -> AsyncIterator[None]:
        """A slot for the block. Raises HTTPException, 503, where there is none in time, and Left."""
        if self._free > 0 and not self._turns:
            self._free -= 1
        else:
            await self._wait(departure)
        try:
            yield
        finally:
            self._give_back()

    async def _wait(self, departure: Departure) -> None:
        if len(self._turns) >= WAITING:
            raise busy("too many questions wait already")
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._turns.append(turn)

        def end(error: Exception) -> None:
            if not turn.done():
                turn.set_exception(error)
                self._turns.remove(turn)

        late = loop.call_later(self._seconds, lambda: end(busy(f"the model was not free for {self._seconds:g} s")))
        departure.then = lambda: end(Left())
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # `_give_back` has passed it over
                    self._turns.remove(turn)
            elif turn.exception() is None:
                self._give_back()
            raise
        finally:
            late.cancel()
            departure.then = None

    def _give_back(self) -> None:
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():  # as that of a cancelled question is, which has not run since
                turn.set_result(None)
                return
        self._free += 1


class _Item(NamedTuple, Generic[T]):
    prepare: Callable[[], PredictionJob | T]
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Any]"


class Pipeline:
    """Threads that end with the process. `score` gives answers to jobs, in order; only one batch is scored at a
    time, `batch_size` images at most; a smaller one waits up to `wait` seconds where others are on their way."""

    def __init__(self, score: "Callable[[list[PredictionJob]], list[Any]]", batch_size: int, wait: float = 0):
        self._score, self._batch_size, self._wait = score, batch_size, wait
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self._ready: queue.SimpleQueue[tuple[_Item[Any], PredictionJob]] = queue.SimpleQueue()
        self._inside = 0  # changed on event loops alone
        threading.Thread(target=self._score_all, name="scorer", daemon=True).start()

    async def run(self, prepare: Callable[[], PredictionJob | T]) -> dict[str, Any] | T:
        """What `prepare` gives, which runs in a decoder's thread: where that is a job, its answer."""
        loop = asyncio.get_running_loop()
        item = _Item(prepare, loop, loop.create_future())
        self._inside += 1
        try:
            self._decoders.submit(self._prepare, item)
            return await item.answer
        finally:
            self._inside -= 1

    def _prepare(self, item: _Item[T]) -> None:
        if item.answer.done():  # cancelled: its slot has gone to another one
            return
        try:
            prepared = item.prepare()
        except BaseException as error:
            _deliver([(item, None, error)])
            return
        if isinstance(prepared, PredictionJob):
            self._ready.put((item, prepared))
        else:
            _deliver([(item, prepared, None)])

    def _score_all(self) -> None:
        while True:
            batch = self._batch()
            items = [item for item, _ in batch]
            try:
                found = self._score([job for _, job in batch])
                _deliver([(item, one, None) for item, one in zip(items, found, strict=True)])
            except BaseException as error:
                _deliver([(item, None, error) for item in items])

    def _batch(self) -> "list[tuple[_Item[Any], PredictionJob]]":
        batch = [self._ready.get()]
        until = time.monotonic() + self._wait
        while len(batch) < self._batch_size:
            left = until - time.monotonic() if self._inside > len(batch) else 0
            try:
                batch.append(self._ready.get(timeout=left) if left > 0 else self._ready.get_nowait())
            except queue.Empty:
                break
        return batch


def _deliver(results: list[tuple[_Item[Any], Any, BaseException | None]]) -> None:
    """Wake each event loop once, whatever it gets."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Any]] = {}
    for result in results:
        by_loop.setdefault(result[0].loop, []).append(result)
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, own)
        except RuntimeError:  # it is closed, and nobody waits
            continue


def _settle(results: list[tuple[_Item[Any], Any, BaseException | None]]) -> None:
    for item, value, error in results:
        if item.answer.done():  # cancelled
            continue
        if error is None:
            item.answer.set_result(value)
        else:
            item.answer.set_exception(error)
