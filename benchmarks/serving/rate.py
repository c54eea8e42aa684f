"""Rates and latencies of the servers in turn, and what each costs before its first question: start and memory."""

import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from benchmarks.serving import load
from benchmarks.serving.servers import BEFORE, LIT, MLFLOW, OURS, PLAIN, TWO, Running, Server, running, uvicorn
from benchmarks.support.table import Column, Table
from mmrl_core.predict import Predictor
from tests.support.clients.resources import processor_seconds
from tests.support.serving import picture

CLIENTS, QUESTIONS = 16, 1000
COLUMNS = [
    Column("server", "server", width=16),
    Column("16 clients: 1/s", "many_rate", ".0f", 16),
    Column("p50 ms", "many_p50", ".1f"),
    Column("p99 ms", "many_p99", ".1f"),
    Column("CPU ms", "many_cpu", ".2f"),
    Column("one client: 1/s", "one_rate", ".0f", 16),
    Column("p50 ms", "one_p50", ".1f"),
    Column("p99 ms", "one_p99", ".1f"),
    Column("CPU ms", "one_cpu", ".2f"),
]
COSTS = [Column("server", "server", width=16), Column("start s", "start", ".1f", 10), Column("MB", "memory", ".0f", 10)]


class Wanted(NamedTuple):
    """A ratio of ours to another server's figure, and the bound that it is to keep."""

    what: str
    figure: str
    other: str
    bound: float
    at_most: bool = False


RATES = [
    Wanted("16 clients, requests/s", "many_rate", MLFLOW, 5),
    Wanted("16 clients, requests/s", "many_rate", PLAIN, 1.2),
    Wanted("16 clients, requests/s", "many_rate", LIT, 1),
    Wanted("one client, requests/s", "one_rate", BEFORE, 4),
    Wanted("16 clients, p99", "many_p99", BEFORE, 0.5, at_most=True),
]
SPENT = [
    Wanted("start", "start", BEFORE, 1 / 3, at_most=True),
    Wanted("memory", "memory", BEFORE, 0.6, at_most=True),
]


def asked(server: Running, seconds: float) -> dict[str, float]:
    """At many clients and at one, a tenth of the time before each not counted; processor time of all of the server's
    processes by the question, which tells more than rates where others use the machine."""
    found = {}
    for name, clients, duration in (("many", CLIENTS, seconds), ("one", 1, seconds / 2)):
        before = processor_seconds(server.token)
        seen = load.put(server.port, server.questions, clients, duration, warm=duration / 10)
        if set(seen["statuses"]) != {"200"} or seen["hanging"]:
            print(f"{server.server.name}, {clients} clients: {seen['statuses']}, {seen['hanging']} hanging", flush=True)
        spent = (processor_seconds(server.token) - before) / sum(seen["statuses"].values()) * 1e3
        found |= {f"{name}_cpu": spent}
        found |= {f"{name}_rate": seen["per_second"], f"{name}_p50": seen["p50_ms"], f"{name}_p99": seen["p99_ms"]}
    return found


def spent(server: Running, seconds: float) -> dict[str, float]:
    """Its start in s; its memory in MB after a thousand questions."""
    load.put(server.port, server.questions, CLIENTS, sys.maxsize, most=QUESTIONS)
    return {"start": server.start, "memory": server.memory()}


def in_turn(
    servers: Sequence[Server], rounds: int, measure: Callable[[Running, float], dict], seconds: float
) -> dict[str, dict]:
    """The medians of what is measured of each, in as many rounds."""
    found: dict[str, list[dict]] = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            with running(server) as one:
                found[server.name].append(measure(one, seconds))
    return {name: {key: statistics.median(one[key] or 0 for one in each) for key in each[0]}
            for name, each in found.items()}  # fmt: skip


def told(title: str, columns: Sequence[Column], found: dict[str, dict], wanted: Iterable[Wanted]) -> None:
    Table(title, columns).extend({"server": name, **figures} for name, figures in found.items())
    for one in wanted:
        if one.other in found:
            ratio = found[OURS][one.figure] / found[one.other][one.figure]
            bound = f"{'at most' if one.at_most else 'at least'} {one.bound:.2f}"
            kept = (ratio <= one.bound) if one.at_most else (ratio >= one.bound)
            print(
                f"  {one.what}: {ratio:.2f} of {one.other} (wanted: {bound}){'' if kept else ', NOT KEPT'}", flush=True
            )


def generator(folder) -> None:
    """What the load reaches by itself, on an application that does nothing."""
    with running(uvicorn("trivial", "trivial", folder)) as server:
        seen = load.put(server.port, server.questions, CLIENTS, 3)
    print(
        f"  the load alone reaches {seen['per_second']:.0f} requests/s, on an application that does nothing", flush=True
    )


def in_process(predictor: Predictor, batch: int, images: int) -> tuple[float, float]:
    """Images a second in this process, in batches: scored, and decoded and scored in one thread."""
    from benchmarks.support.machine import seconds

    pictures = [picture(seed) for seed in range(batch)]
    classes = [predictor.classes()] * batch

    def views() -> list:
        return [predictor.view(one, "picture") for one in pictures]

    ready = views()
    predictor.score(ready, classes)
    times = [(seconds(lambda: predictor.score(ready, classes)), seconds(views)) for _ in range(max(images // batch, 3))]
    scored, decoded = (statistics.median(column) for column in zip(*times, strict=True))
    return batch / scored, batch / (scored + decoded)


def rate(servers: Sequence[Server], folder, rounds: int, seconds: float, predictor: Predictor) -> None:
    found = in_turn(servers, rounds, asked, seconds)
    told(f"rates: medians of {rounds} rounds of {seconds:g} s", COLUMNS, found, RATES)
    generator(folder)
    scored, both = in_process(predictor, 16, 800)
    print(f"  in one process, batches of 16: {scored:.0f} images/s scored by torch, {both:.0f} with decoding before it")


def start(servers: Sequence[Server], rounds: int, seconds: float) -> None:
    found = in_turn([one for one in servers if one.name != TWO], rounds, spent, seconds)
    told(f"start to the first answer, memory after {QUESTIONS} requests: medians of {rounds}", COSTS, found, SPENT)
