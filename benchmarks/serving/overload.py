"""More questions than can be answered: what is still answered, and whether the server says meanwhile that it lives."""

from typing import Any

from benchmarks.serving import load
from benchmarks.serving.rate import CLIENTS
from benchmarks.serving.servers import Server, running
from benchmarks.support.table import Column, Table, notes
from tests.support.clients.watch import watching

TIMES, CONNECTIONS = 10, 4000
COLUMNS = [
    Column("load", "load", width=26),
    Column("200s 1/s", "per_second", ".0f", 10),
    Column("answers 1/s", "answers_per_second", ".0f", 12),
    Column("of the peak", "share", ".2f", 12),
    Column("p50 ms", "p50_ms", ".0f"),
    Column("p99 ms", "p99_ms", ".0f"),
    Column("/healthz s", "worst", ".2f", 11),
    Column("control s", "control", ".2f", 10),
]


def overload(server: Server, seconds: float) -> None:
    table = Table(
        f"overload, {seconds:g} s each; worst /healthz of ten a second, beside a server that does nothing", COLUMNS
    )
    with running(server) as one:
        peak = 0.0
        for clients in (CLIENTS, 10 * CLIENTS, 100 * CLIENTS):
            seen = watched(one, clients, seconds, patient=True)
            peak = peak or seen["per_second"]
            add(table, f"{clients} clients", seen, peak)
        for times in (2, TIMES):
            seen = watched(one, CONNECTIONS, seconds, rate=times * peak)
            add(table, f"{times * peak:.0f} arrivals/s ({times} x)", seen, peak)
        seen = watched(one, CLIENTS, seconds)
        add(table, f"{CLIENTS} clients again", seen, peak)
    notes(
        "clients ask again when they are answered, after a 503 in the seconds of its Retry-After; arrivals do not wait"
    )


def watched(server, clients: int, seconds: float, **more: Any) -> dict:
    with watching(server.address) as seen:
        found = load.put(server.port, server.questions, clients, seconds, warm=seconds / 2, **more)
        watch = seen()
    return found | {"worst": watch.worst, "control": watch.worst_control, "health": watch.statuses}


def add(table: Table, name: str, seen: dict, peak: float) -> None:
    note = ", ".join(f"{status if status != '0' else 'lost'}: {count}" for status, count in seen["statuses"].items())
    extra = {key: seen[key] for key in ("unsent", "hanging", "untold") if seen[key]}
    if set(seen["health"]) != {"200"}:
        extra["/healthz"] = seen["health"]
    note += "".join(f", {key} {value}" for key, value in extra.items())
    table.add(seen | {"load": name, "share": seen["per_second"] / peak, "note": note})
