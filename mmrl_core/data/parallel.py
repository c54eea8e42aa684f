"""Work on many items in threads, in order and in bounded memory: what decodes images on every core."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

# Items handed to a thread at a time: one by one, small images cost more in handing over than they gain.
CHUNK = 32
SURE, WAITING = 8, 8  # chunks; how many times the work's time has to pass

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], size: int = CHUNK, small: Callable[[T], bool] | None = None
) -> Iterator[R]:
    """`function` of every item, in the order of the items, by one thread a core; of chunks of `small` items by the
    calling thread, unless it waits for a disk or a network longer than it works. Small work takes Python's lock so
    often that threads wait for each other longer than they work.

    `items` is read by the calling thread, at most cores + 2 chunks of `size` ahead of what was taken here. The error
    that comes out is the first in order, whichever thread failed first.
    """
    items, cores = iter(items), os.cpu_count() or 1
    chunks = iter(lambda: list(islice(items, size)), [])
    threads, pace = ThreadPoolExecutor(cores), _Pace()

    def begun(chunk: list[T]) -> Callable[[], list[R]]:
        if small and not pace.waits and all(map(small, chunk)):
            return partial(pace.timed, partial(_map, function, chunk))
        return threads.submit(_map, function, chunk).result

    try:
        ahead = deque(begun(chunk) for chunk in islice(chunks, cores + 1))
        while ahead:
            done = ahead.popleft()()
            ahead.extend(begun(chunk) for chunk in islice(chunks, 1))
            yield from done
    finally:
        threads.shutdown(cancel_futures=True)


class _Pace:
    """Whether the calling thread's work is mostly waiting, judged by all that it did once that is SURE chunks."""

    def __init__(self) -> None:
        self._chunks, self._passed, self._worked = 0, 0.0, 0.0

    @property
    def waits(self) -> bool:
        return self._chunks >= SURE and self._passed > WAITING * self._worked

    def timed(self, work: Callable[[], R]) -> R:
        passed, worked = time.perf_counter(), time.thread_time()
        done = work()
        self._passed += time.perf_counter() - passed
        self._worked += time.thread_time() - worked
        self._chunks += 1
        return done


def _map(function: Callable[[T], R], chunk: list[T]) -> list[R]:
    return [function(item) for item in chunk]
