"""The load, from a process of its own that imports next to nothing: it reads a plan from standard input as JSON, and
prints what it found.

A closed loop has so many clients, each asking again as soon as it is answered, after the time of Retry-After where it
is patient. An open loop asks at a rate, whatever comes back; what no free connection was there for is `unsent`.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import uvloop

from tests.support.clients.connection import Connection
from tests.support.workspace import ROOT, environment

GRACE = 90  # seconds after the end for what is still under way; what then is not answered hangs
LOST = 0  # stands as the status of a question whose connection was refused, or closed without an answer


class Plan(NamedTuple):
    """Requests as text in Latin-1, taken in turn; `rate` in questions a second makes the loop an open one, with
    `clients` as the most connections. What ends in the first `warm` seconds is not measured."""

    port: int
    requests: list[str]
    clients: int
    seconds: float
    warm: float = 0
    rate: float | None = None
    patient: bool = False
    most: int = sys.maxsize


class Load:
    """What the clients share: the questions, and what came back as (end, seconds, status)."""

    def __init__(self, plan: Plan):
        self.plan, self.requests = plan, [text.encode("latin-1") for text in plan.requests]
        self.found: list[tuple[float, float, int]] = []
        self.asked = self.unsent = self.hanging = self.untold = 0  # untold: 503 without Retry-After
        self.begin = time.perf_counter() + plan.warm
        self.end = self.begin + plan.seconds

    def next(self) -> bytes:
        self.asked += 1
        return self.requests[(self.asked - 1) % len(self.requests)]

    def over(self) -> bool:
        return self.asked >= self.plan.most or time.perf_counter() >= self.end

    async def one(self, connection: Connection) -> float:
        """Ask once; gives the seconds that the server asks to wait for."""
        began = time.perf_counter()
        try:
            answer = await connection.ask(self.next())
        except OSError:
            self.note(began, LOST)
            return 0.1
        self.note(began, answer.status)
        self.untold += answer.status == 503 and not answer.retry_after
        return float(answer.retry_after or 0)

    def note(self, began: float, status: int) -> None:
        ended = time.perf_counter()
        self.found.append((ended, ended - began, status))

    async def client(self) -> None:
        connection = Connection(self.plan.port)
        while not self.over():
            wait = await self.one(connection)
            if wait and self.plan.patient:
                await asyncio.sleep(min(wait, max(self.end - time.perf_counter(), 0)))
        connection.close()

    async def arrivals(self, rate: float) -> set[asyncio.Task]:
        """Tasks that are still under way at the end."""
        idle, opened, sent, tasks, start = deque[Connection](), 0, 0, set[asyncio.Task](), time.perf_counter()

        async def arrival(connection: Connection) -> None:
            await self.one(connection)
            idle.append(connection)

        while not self.over():
            due = int(rate * (time.perf_counter() - start))
            for _ in range(due - sent):
                if not idle and opened >= self.plan.clients:
                    self.unsent += 1
                    continue
                opened += not idle
                task = asyncio.ensure_future(arrival(idle.popleft() if idle else Connection(self.plan.port)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            sent = due
            await asyncio.sleep(0.002)
        return tasks

    async def run(self) -> dict[str, Any]:
        if self.plan.rate:
            waited = await self.arrivals(self.plan.rate)
        else:
            waited = {asyncio.ensure_future(self.client()) for _ in range(self.plan.clients)}
        if waited:
            _, hanging = await asyncio.wait(waited, timeout=max(self.end - time.perf_counter(), 0) + GRACE)
            self.hanging = len(hanging)
        return self.told()

    def told(self) -> dict[str, Any]:
        """Rates and latencies are of what ended in the time, latencies of the good answers; counts are of all."""
        until = min(self.end, max((one[0] for one in self.found), default=self.end))
        ended, seconds = [one for one in self.found if self.begin <= one[0] <= until], max(until - self.begin, 1e-9)
        good = sorted(taken for _, taken, status in ended if status == 200)
        return {
            "per_second": sum(status == 200 for _, _, status in ended) / seconds,
            "answers_per_second": sum(status != LOST for _, _, status in ended) / seconds,
            "p50_ms": percentile(good, 0.5),
            "p99_ms": percentile(good, 0.99),
            "statuses": Counter(str(status) for _, _, status in self.found),
            "unsent": self.unsent,
            "hanging": self.hanging,
            "untold": self.untold,
        }


def percentile(ordered: list[float], share: float) -> float | None:
    """In ms, of seconds in ascending order."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e3 if ordered else None


def start(port: int, requests: Iterable[bytes], clients: int, seconds: float, **more: Any) -> subprocess.Popen:
    """The second process, at work."""
    plan = Plan(port, [request.decode("latin-1") for request in requests], clients, seconds, **more)
    command, path = [sys.executable, "-m", "benchmarks.serving.load"], {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, cwd=ROOT, env=environment() | path, **pipes)
    assert child.stdin
    json.dump(plan._asdict(), child.stdin)
    child.stdin.close()
    return child


def found(child: subprocess.Popen) -> dict[str, Any]:
    assert child.stdout
    text = child.stdout.read()
    assert child.wait() == 0, "the load ended early"
    return json.loads(text)


def put(port: int, requests: Iterable[bytes], clients: int, seconds: float, **more: Any) -> dict[str, Any]:
    """Put a load on a server of this machine; gives what was found."""
    return found(start(port, requests, clients, seconds, **more))


async def _main() -> None:
    print(json.dumps(await Load(Plan(**json.load(sys.stdin))).run()))


if __name__ == "__main__":
    uvloop.run(_main())
