"""Where a step's time goes, by kind of operation, from torch.profiler: self time on the calling thread."""

import os
from collections.abc import Iterable
from typing import NamedTuple

from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.steps import MODES
from benchmarks.support.cases import Case, Plan, Step, model_of, model_step
from benchmarks.support.machine import seconds
from benchmarks.support.memory import warm_heap
from benchmarks.support.table import Column, Table, notes

WARM_UP, STEPS, CLASSES, BATCH = 6, 3, 50, 4
# The first kind of which a part is in an operation's name.
KINDS = {
    "optimiser": ("adamw", "Optimizer", "_foreach"),
    "attention": ("scaled_dot_product", "native_multi_head"),
    "matrix products": ("mm", "matmul", "linear", "convolution", "einsum"),
    "activation": ("gelu", "silu", "sigmoid"),
    "norms": ("layer_norm", "vector_norm"),
    "copies, concatenation": (
        "cat", "copy", "clone", "contiguous", "index", "pad", "slice_backward", "select_backward", "zero", "fill",
        "stack", "empty", "new_", "reshape", "_to",
    ),
    "sums, scaling": ("add", "mul", "sum", "div", "mean", "sub", "neg"),
}  # fmt: skip
OTHER, BETWEEN = "other operations", "outside operations"
COLUMNS = [
    Column("kind", "kind", "s", 26),
    *(Column(text, key, form, width) for mode in MODES
      for text, key, form, width in ((f"{mode} %", f"{mode} share", ".1%", 16), ("ms", f"{mode} ms", ".1f", 9))),
]  # fmt: skip


class Profile(NamedTuple):
    """Milliseconds of a step by kind, and the wall-clock time of one, profiled."""

    kinds: dict[str, float]
    wall: float


def measure(plan: Plan) -> list[dict]:
    """The profile section, for the last of the methods."""
    case = Case(plan.backbone, plan.methods[-1], CLASSES, BATCH)
    table = Table(f"Where a step's time goes: {case.method}, {CLASSES} classes, batch {BATCH}", COLUMNS)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells each start and stop
    warm_heap(2 << 30)
    found = {}
    for mode, (precision, cached) in MODES.items():
        model = model_of(case, case.adapter(), precision)
        found[mode] = profiled(model_step(model, case, precision, cached))
    for kind in [*KINDS, OTHER, BETWEEN, "whole step"]:
        table.add(row(kind, found))
    notes(f"Means of {STEPS} profiled steps after {WARM_UP}. Outside operations: Python, and the profiler itself.")
    return table.rows


def row(kind: str, found: dict[str, Profile]) -> dict:
    values = {"kind": kind}
    for mode, (kinds, wall) in found.items():
        own = wall if kind == "whole step" else kinds.get(kind, 0.0)
        values |= {f"{mode} ms": own, f"{mode} share": own / wall}
    return values


def profiled(step: Step) -> Profile:
    for _ in range(WARM_UP):
        step()
    with profiler(activities=[ProfilerActivity.CPU]) as record:
        wall = 1e3 * sum(seconds(step) for _ in range(STEPS)) / STEPS
    events = record.key_averages()
    kinds = by_kind((event.key, event.self_cpu_time_total / 1e3 / STEPS) for event in events)
    return Profile({**kinds, BETWEEN: wall - sum(kinds.values())}, wall)


def by_kind(operations: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Milliseconds of every kind from those of every operation."""
    kinds = dict.fromkeys([*KINDS, OTHER], 0.0)
    for name, taken in operations:
        kinds[kind_of(name)] += taken
    return kinds


def kind_of(operation: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), OTHER)
