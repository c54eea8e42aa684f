"""Classes that a question names itself: their features, computed in a thread of their own.

A list that is new takes a pass of the text tower, a thousand times as long as an image. So there is one at a time, with
less of the processor than images have; LISTS others may wait, and no question among known classes ever does.
"""

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from flows.serving.busy import busy
from flows.serving.follower import Live

if TYPE_CHECKING:
    from mmrl_core.predict import Classes

LISTS, LATER = 16, 5  # that may wait; seconds after which to ask again
NICE = 10

Key = tuple[int, tuple[str, ...]]  # of a version and a list


class _Wanted:
    """A list that is being computed, or waits for it."""

    def __init__(self, live: Live, loop: asyncio.AbstractEventLoop):
        self.live, self.loop, self.asking = live, loop, 0  # questions that wait
        self.features: asyncio.Future[Classes] = loop.create_future()


class ClassLists:
    """New lists of classes of any version."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="classes", initializer=_be_nice)
        self._wanted: dict[Key, _Wanted] = {}

    async def of(self, live: Live, class_names: list[str]) -> "Classes":
        """The classes of a list, computed once however many ask at a time, and not if all of them have gone.

        Raises UserError as `Live.new_classes`, HTTPException, 503, where too many lists wait.
        """
        if known := live.known(class_names):
            return known
        key = id(live), tuple(class_names)
        wanted = self._wanted.get(key)
        if wanted is None:
            if len(self._wanted) > LISTS:
                raise busy(f"{LISTS} new lists of classes wait already", LATER)
            wanted = self._wanted[key] = _Wanted(live, asyncio.get_running_loop())
        wanted.asking += 1
        if wanted.asking == 1:
            self._thread.submit(self._compute, key, wanted)
        try:
            return await asyncio.shield(wanted.features)
        finally:
            wanted.asking -= 1

    def _compute(self, key: Key, wanted: _Wanted) -> None:
        """In the thread."""
        found, error = None, None
        if wanted.asking:
            try:
                names = list(key[1])
                found = wanted.live.known(names) or wanted.live.new_classes(names)
            except Exception as raised:
                error = raised
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            wanted.loop.call_soon_threadsafe(self._settle, key, wanted, found, error)

    def _settle(self, key: Key, wanted: _Wanted, found: "Classes | None", error: Exception | None) -> None:
        if wanted.features.done() or (found is None and error is None and wanted.asking):
            return  # it was given to the thread twice; or somebody has come since, and it was given to it again
        if self._wanted.get(key) is wanted:
            del self._wanted[key]
        if error is not None:
            wanted.features.set_exception(error)
            wanted.features.exception()  # it may be that nobody waits any more
        elif found is not None:
            wanted.features.set_result(found)


def _be_nice() -> None:
    if sys.platform == "linux":  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)
