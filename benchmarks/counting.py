"""Operations of a step as torch dispatches them, beside the formulas of support/costs.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.support.cases import Case, Plan, Step, model_of, model_step, oracle_step
from benchmarks.support.costs import FORWARD, Shape, our_step, published_step
from benchmarks.support.table import Column, Table, notes

COLUMNS = [
    Column("method", "method", "s", 9), Column("classes", "classes", "d"), Column("batch", "batch", "d", 6),
    Column("frozen", "frozen", "s", 12), Column("ratio", "ratio", ".2f", 7),
    Column("bytes ratio", "bytes_ratio", ".2f", 13),
    Column("GFLOP", "gflop", ".1f", 10), Column("formula", "gflop_formula", ".1f", 10),
    Column("GB moved", "gb", ".2f", 10), Column("GFLOP", "published_gflop", ".1f", 15),
    Column("formula", "published_gflop_formula", ".1f", 10), Column("GB moved", "published_gb", ".2f", 10),
]  # fmt: skip


def _native_attention(query: torch.Size, *_, **__) -> int:
    """nn.MultiheadAttention in one kernel, which open_clip's frozen layers run and torch's counter passes over."""
    count, length, width = query
    return int(2 * count * length * 4 * width**2 + FORWARD * count * length**2 * width)


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts the operations of matrix products, convolutions and attention."""
    formulas = {torch.ops.aten._native_multi_head_attention: _native_attention}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        yield counter


def counted_flops(step: Step) -> int:
    """Operations of a step, without computing anything: real tensors go in as fake ones."""
    with FakeTensorMode(allow_non_fake_inputs=True), counting() as counter:
        step()
    return counter.get_total_flops()


def measure(plan: Plan) -> list[dict]:
    """The costs section: nothing here depends on the machine."""
    table = Table("Costs of a step: operations counted by torch and by formula, bytes by formula; published over ours"
                  f"\n{'':62}this{'':31}published", COLUMNS)  # fmt: skip
    for batch, classes, method in product(plan.batches, plan.classes, plan.methods):
        table.extend(rows(Case(plan.backbone, method, classes, batch)))
    notes(
        "frozen: trunk and zero-shot features computed in the step, or given. GB moved: costs.py says what is modelled."
    )
    return table.rows


def rows(case: Case) -> Iterator[dict]:
    shape, counted = Shape.of(case), counted_flops(oracle_step(case))
    published, model = published_step(shape), model_of(case, case.adapter(), "float32")
    for cached in (False, True):
        ours, own = our_step(shape, model, cached), counted_flops(model_step(model, case, "float32", cached))
        yield {
            "method": case.method, "classes": case.classes, "batch": case.batch,
            "frozen": "cached" if cached else "computed",
            "ratio": counted / own, "bytes_ratio": published.bytes / ours.bytes,
            "gflop": own / 1e9, "gflop_formula": ours.flops / 1e9, "gb": ours.bytes / 1e9,
            "published_gflop": counted / 1e9, "published_gflop_formula": published.flops / 1e9,
            "published_gb": published.bytes / 1e9,
        }  # fmt: skip
