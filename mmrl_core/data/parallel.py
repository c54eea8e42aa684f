"""Work on many items in threads, in order and in bounded memory: what decodes images on every core."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

# Items handed to a thread at a time: one by one, small images cost more in handing over than they gain.
CHUNK = 32

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(function: Callable[[T], R], items: Iterable[T], size: int = CHUNK) -> Iterator[R]:
    """`function` of every item, in the order of the items, by one thread a core.

    `items` is read by the calling thread, at most cores + 2 chunks of `size` ahead of what was taken here. The error
    that comes out is the first in order, whichever thread failed first.
    """
    items, cores = iter(items), os.cpu_count() or 1
    chunks = iter(lambda: list(islice(items, size)), [])
    threads = ThreadPoolExecutor(cores)
    try:
        ahead = deque(threads.submit(_map, function, chunk) for chunk in islice(chunks, cores + 1))
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(threads.submit(_map, function, chunk) for chunk in islice(chunks, 1))
            yield from done
    finally:
        threads.shutdown(cancel_futures=True)


def _map(function: Callable[[T], R], chunk: list[T]) -> list[R]:
    return [function(item) for item in chunk]
