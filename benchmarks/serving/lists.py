"""What a client that keeps sending new lists of classes costs the others."""

import itertools

from benchmarks.serving import load
from benchmarks.serving.servers import Server, running
from benchmarks.support.table import Column, Table
from tests.support.clients.connection import request
from tests.support.serving import in_base64, picture

CLIENTS, NAMES, LISTS = 4, 100, 2000
COLUMNS = [
    Column("ordinary questions", "what", width=36),
    Column("1/s", "per_second", ".0f"),
    Column("p50 ms", "p50_ms", ".1f"),
    Column("p99 ms", "p99_ms", ".1f"),
    Column("lists 1/s", "lists", ".1f", 10),
]


def new_lists() -> list[bytes]:
    """Questions that each name classes which none before did."""
    numbers, image = itertools.count(), in_base64(picture(0))
    return [request("/predict", {"image": image, "class_names": [f"thing {next(numbers)}" for _ in range(NAMES)]})
            for _ in range(LISTS)]  # fmt: skip


def lists(server: Server, seconds: float) -> None:
    table = Table(f"{CLIENTS} clients with ordinary questions, {seconds:g} s", COLUMNS)
    with running(server) as one:
        alone = load.put(one.port, one.questions, CLIENTS, seconds, warm=seconds / 5)
        table.add(alone | {"what": "alone"})
        other = load.start(one.port, new_lists(), 1, 1.2 * seconds + 1)
        beside = load.put(one.port, one.questions, CLIENTS, seconds, warm=seconds / 5)
        theirs = load.found(other)
        table.add(beside | {"what": f"beside one with lists of {NAMES} new names", "lists": theirs["per_second"],
                            "note": f"lists: {theirs['statuses']}"})  # fmt: skip
    print(f"  p50 {beside['p50_ms'] / alone['p50_ms']:.1f} times, p99 {beside['p99_ms'] / alone['p99_ms']:.1f} times")
