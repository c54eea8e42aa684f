"""Whole training steps against the oracle's: time, peak memory, and the share of the machine's multiplication rate.

In a cell the oracle's step first runs under glibc's own settings (`found`), then in turn with ours under the product's.
A step that takes longer than SLOW seconds is measured once, and for the first method alone: the oracle does the same
operations for both within a thousandth. Operations are those of support/costs.py, which
tests/benchmarks/test_costs.py compares with torch's count.
"""

import statistics
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from benchmarks.support.baseline import Baseline, Forecast, measure_baseline
from benchmarks.support.cases import Case, Plan, Step, model_of, model_step, oracle_step
from benchmarks.support.costs import Shape, our_step, published_step
from benchmarks.support.machine import matmul_rates, seconds
from benchmarks.support.memory import peak_of, warm_heap
from benchmarks.support.table import Column, Table, notes

# How frozen features come and the type of the products: precision, and whether they are given.
MODES = {"computed": ("float32", False), "cached": ("float32", True), "cached bf16": ("bf16", True)}
COLUMNS = [
    Column("method", "method", "s", 9), Column("classes", "classes", "d", 7), Column("batch", "batch", "d", 6),
    Column("frozen", "mode", "s", 14), Column("ratio", "ratio", ".2f", 6), Column("found", "ratio_found", ".2f", 7),
    Column("memory", "memory_ratio", ".2f", 7), Column("FLOPs", "flop_ratio", ".2f", 7),
    Column("ms", "ms", ".0f", 7), Column("oracle", "oracle_ms", ".0f", 8), Column("found", "oracle_found_ms", ".0f", 8),
    Column("MB", "mb", ".0f", 6), Column("oracle", "oracle_mb", ".0f", 7),
    Column("share", "share", ".0%", 6), Column("oracle", "oracle_share", ".0%", 7), Column("n", "rounds", "d", 2),
]  # fmt: skip


class Ours(NamedTuple):
    step: Step
    flops: float
    precision: str


def measure(plan: Plan) -> list[dict]:
    """The steps section."""
    table = Table("Training steps against the plain model", COLUMNS)
    forecast, slow = Forecast(), {}
    warm_up(Case(plan.backbone, plan.methods[0], 10, plan.batches[0]))
    for batch, classes, method in product(plan.batches, plan.classes, plan.methods):
        table.extend(rows(Case(plan.backbone, method, classes, batch), plan.rounds, forecast, slow))
    notes(
        "ratio: the oracle's time over ours, both with the allocator keeping freed memory, as the product sets it.",
        "found: the oracle under glibc's own settings over ours. memory: our peak over the oracle's, beyond what the",
        "process had before. FLOPs: the oracle's operations over ours. share: of the measured matrix-multiply rate of",
        "the type. n: measurements, of which the median counts. cached: frozen features are given. =: the oracle's",
        "figures are those of the method above. A dash: not measured. A single found step, and a step without an",
        "oracle, begin with no freed memory in hand.",
    )
    return table.rows


def warm_up(case: Case) -> None:
    """What a process does but once, in either model."""
    oracle_step(case)()
    for one in our_steps(case).values():
        one.step()


def rows(case: Case, rounds: int, forecast: Forecast, slow: dict) -> Iterator[dict]:
    """A row a mode. `slow` keeps slow oracles' baselines and times for the other method."""
    refusal = forecast.refusal(case)
    if refusal:
        yield from alone(case, refusal)
        return
    key = (case.classes, case.batch)
    base, kept = slow.get(key) or (measure_baseline(case, rounds), None)
    forecast.note(case, base.peak)
    ours, is_slow = our_steps(case), base.rounds < rounds
    peaks = our_peaks(ours, is_slow)
    warm_heap(max([base.peak or 0, *peaks.values()]))
    rates = matmul_rates()
    oracle = {} if kept else {"oracle": base.step}
    times = medians_in_turn(oracle | {mode: one.step for mode, one in ours.items()}, base.rounds)
    kept = kept or times["oracle"]
    if is_slow:
        slow[key] = (base._replace(step=None), kept)
    for mode, one in ours.items():
        yield compared(case, mode, one, base, kept, times[mode], peaks.get(mode), rates)


def our_peaks(ours: dict[str, Ours], is_slow: bool) -> dict[str, int]:
    """Peaks in bytes under the product's allocator settings; also every step's warm-up.

    Of slow steps the one with float32 features given is left out: its peak is about that of the one that computes them.
    """
    warm_heap(None)
    peaks = {mode: peak_of(one.step) for mode, one in ours.items() if not (is_slow and mode == "cached")}
    return {mode: peak for mode, peak in peaks.items() if peak is not None}


def our_steps(case: Case) -> dict[str, Ours]:
    """A step a mode; those of one precision share the model."""
    models = {precision: model_of(case, case.adapter(), precision) for precision in ("float32", "bf16")}
    steps, shape = {}, Shape.of(case)
    for mode, (precision, cached) in MODES.items():
        step = model_step(models[precision], case, precision, cached)
        steps[mode] = Ours(step, our_step(shape, models[precision], cached).flops, precision)
    return steps


def medians_in_turn(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of every step; each round takes all of them, so that they see the same machine."""
    taken = [{name: seconds(step) for name, step in steps.items()} for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in taken) for name in steps}


def alone(case: Case, refusal: str) -> Iterator[dict]:
    """Time, fresh pages included, and peak of one step in every mode, where the oracle does not fit."""
    warm_heap(None)
    for mode, one in our_steps(case).items():
        times = []
        peak = peak_of(lambda times=times, step=one.step: times.append(seconds(step)))
        yield described(case, mode, ms=1e3 * times[0], mb=in_mb(peak), rounds=1, note=refusal)
        refusal = None


def compared(
    case: Case, mode: str, one: Ours, base: Baseline, kept: float, ours: float, peak: int | None, rates: dict
) -> dict:
    """A row of the table: seconds of ours and of the oracle under the product's allocator settings, `kept`."""
    published = published_step(Shape.of(case)).flops
    return described(
        case, mode, ratio=kept / ours, ratio_found=base.found / ours, flop_ratio=published / one.flops,
        memory_ratio=peak / base.peak if peak and base.peak else None,
        ms=1e3 * ours, oracle_ms=1e3 * kept, oracle_found_ms=1e3 * base.found,
        mb=in_mb(peak), oracle_mb=in_mb(base.peak), rounds=base.rounds,
        share=one.flops / ours / rates[one.precision], oracle_share=published / kept / rates["float32"],
        gflop=one.flops / 1e9, oracle_gflop=published / 1e9,
        gflops_rates={name: rate / 1e9 for name, rate in rates.items()},
        note="=" if base.method != case.method else None,
    )  # fmt: skip


def described(case: Case, mode: str, **values) -> dict:
    return {"method": case.method, "classes": case.classes, "batch": case.batch, "mode": mode, **values}


def in_mb(size: int | None) -> float | None:
    return None if size is None else size / 1e6
