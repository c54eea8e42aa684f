"""Peak memory of a step alone, ours and the oracle's, without any timing; `steps` measures it as well."""

from collections.abc import Iterator
from itertools import product

from benchmarks.steps import described, in_mb, our_steps, warm_up
from benchmarks.support.baseline import Forecast
from benchmarks.support.cases import Case, Plan, oracle_step
from benchmarks.support.memory import as_found, peak_of
from benchmarks.support.table import Column, Table, notes
from mmrl_core.training.process import keep_freed_memory

COLUMNS = [
    Column("method", "method", "s", 9), Column("classes", "classes", "d", 7), Column("batch", "batch", "d", 6),
    Column("frozen", "mode", "s", 14), Column("memory", "memory_ratio", ".2f", 7),
    Column("MB", "mb", ".0f", 8), Column("oracle", "oracle_mb", ".0f", 8),
]  # fmt: skip


def measure(plan: Plan) -> list[dict]:
    """The memory section."""
    table, forecast = Table("Peak memory of a step beyond what the process had before", COLUMNS), Forecast()
    warm_up(Case(plan.backbone, plan.methods[0], 10, plan.batches[0]))
    for batch, classes, method in product(plan.batches, plan.classes, plan.methods):
        table.extend(rows(Case(plan.backbone, method, classes, batch), forecast))
    notes(
        "memory: our peak over the oracle's. Ours with the product's allocator settings, the oracle with glibc's own."
    )
    return table.rows


def rows(case: Case, forecast: Forecast) -> Iterator[dict]:
    as_found()
    refusal = forecast.refusal(case)
    oracle = None if refusal else peak_of(oracle_step(case))
    forecast.note(case, oracle)
    keep_freed_memory()
    for mode, one in our_steps(case).items():
        peak = peak_of(one.step)
        ratio = peak / oracle if peak and oracle else None
        yield described(case, mode, memory_ratio=ratio, mb=in_mb(peak), oracle_mb=in_mb(oracle), note=refusal)
        refusal = None
