"""Whether who asked has hung up, so that nothing is computed for nobody."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Left(Exception):
    """Who asked has gone: nobody reads the answer."""


class Departure:
    """Of one question; `then` is called as its connection is lost, on the event loop."""

    def __init__(self) -> None:
        self.gone = False
        self.then: Callable[[], object] | None = None

    def happen(self) -> None:
        self.gone = True
        if self.then:
            self.then()

    async def unless(self, wanted: Coroutine[Any, Any, T]) -> T:
        """What is wanted. Raises Left as soon as who asked has gone."""
        if self.gone:
            wanted.close()  # Python would say on stderr that it was never awaited
            raise Left
        task = asyncio.ensure_future(wanted)
        self.then = task.cancel
        try:
            return await task
        except asyncio.CancelledError:
            if self.gone:
                raise Left from None
            raise
        finally:
            self.then = None
            task.cancel()
