"""What each means of going fast gains by itself: a piece of a step without it and with it, predicted and measured.

Predicted is the ratio of operations, where the means saves operations; measured the ratio of times, both in turn under
the product's allocator settings, but for the allocator itself. Where operations are the same, what is saved is memory
traffic, fresh pages or the type of the product, and the prediction is a dash or the ratio of measured rates.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.counting import counted_flops
from benchmarks.support.cases import TEMPLATE, Case, Plan, Step, class_names, model_of, model_step, oracle_of
from benchmarks.support.machine import matmul_rates, seconds
from benchmarks.support.memory import as_found, warm_heap
from benchmarks.support.table import Column, Table, notes
from mmrl_core.clip import packing, towers
from mmrl_core.clip.blocks import read, run
from mmrl_core.clip.text_tower import CHUNK_SUFFIX_TOKENS, SharedPrefix
from tests.oracle import Oracle

HEAP = 4 << 30  # bytes in hand
COLUMNS = [
    Column("means", "means", "s", 60), Column("predicted", "predicted", ".2f", 10),
    Column("measured", "measured", ".2f", 9), Column("ms before", "before_ms", ".1f", 10),
    Column("after", "after_ms", ".1f", 9),
]  # fmt: skip


class Gain(NamedTuple):
    means: str
    before: Step
    after: Step
    counts: bool = True  # whether operations predict it


def measure(plan: Plan) -> list[dict]:
    """The gains section, for the last of the methods and the smallest batch."""
    case = Case(plan.backbone, plan.methods[-1], min(50, max(plan.classes)), min(plan.batches))
    many = case._replace(classes=max(plan.classes) if plan.quick else 500)
    large = case._replace(batch=max(plan.batches))
    table = Table(f"What each means gains: {case.method}, {case.classes} classes, batch {case.batch}", COLUMNS)
    warm_heap(HEAP)
    for make in (image_gains, text_gains):
        table.extend(rows(make(case, many, large), plan.rounds))
    table.extend(step_gains(case, plan.rounds))
    notes("predicted: operations before over after; for bf16 the ratio of the measured multiplication rates.")
    return table.rows


def rows(gains: Iterator[Gain], rounds: int) -> Iterator[dict]:
    for gain in gains:
        before, after = in_turn(gain.before, gain.after, rounds)
        predicted = counted_flops(gain.before) / counted_flops(gain.after) if gain.counts else None
        yield row(gain.means, predicted, before, after)


def row(means: str, predicted: float | None, before: float, after: float) -> dict:
    return {"means": means, "predicted": predicted, "measured": before / after, "before_ms": 1e3 * before,
            "after_ms": 1e3 * after}  # fmt: skip


def in_turn(before: Step, after: Step, rounds: int) -> tuple[float, float]:
    """Median seconds of both after a warm-up of each."""
    before(), after()
    times = [(seconds(before), seconds(after)) for _ in range(rounds)]
    return tuple(statistics.median(column) for column in zip(*times, strict=True))


def image_gains(case: Case, many: Case, large: Case) -> Iterator[Gain]:
    model, clip = model_of(case, case.adapter(), "float32"), case.backbone.clip
    tower, images = model.image_tower, case.inputs()[0]
    trunk, block = tower.trunk(images), tower.blocks[-1]
    yield Gain("frozen features from the trunk, not from the image", no_grad(lambda: clip.encode_image(images)),
               lambda: tower.zero_shot(trunk))  # fmt: skip
    slots = [0, *range(1, 1 + model.adapter.config.n_tokens)]
    yield Gain("last image layer for the slots that are read", backward_of(trunk, lambda x: run(block, x)[:, slots]),
               backward_of(trunk, lambda x: read(block, x, x[:, slots])))  # fmt: skip
    model, trunk = model_of(large, large.adapter(), "float32"), model.image_tower.trunk(large.inputs()[0])
    adapted = model_pass(model, trunk)
    yield Gain(f"{large.batch} images in chunks that fit a CPU's caches", with_value(towers, "CHUNK_TOKENS", 10**9,
               adapted), adapted, counts=False)  # fmt: skip


def model_pass(model, trunk: Tensor) -> Step:
    """The adapted image tower, forward and backward."""

    def step() -> None:
        cls, slots = model.image_tower.adapted(trunk, model.adapter.image_tokens(), model.adapter.config.composition)
        (cls.sum() + slots.sum()).backward()

    return step


def text_gains(case: Case, many: Case, large: Case) -> Iterator[Gain]:
    for one in (case, many):
        adapter = one.adapter()
        oracle, ours = oracle_of(one, adapter), text_pass(text_tower(one, adapter.n_insert), adapter)
        plain = plain_text_pass(oracle)
        yield Gain(f"{one.classes} classes: shared prefix, cut at the end, constants", plain, ours)
    adapter = many.adapter()
    grouped = text_pass(text_tower(many, adapter.n_insert), adapter)
    with changed(packing, "GROUP_SLOTS", 1):
        single = text_pass(text_tower(many, adapter.n_insert), adapter)
    yield Gain(f"{many.classes} classes in groups: the prefix is copied once a group", single, grouped, counts=False)
    whole = text_pass(text_tower(many, adapter.n_insert, 10**9), adapter)
    parts = text_pass(text_tower(many, adapter.n_insert, 512), adapter)
    yield Gain(f"{many.classes} classes in recomputed chunks of 512 tokens (bounds memory)", whole, parts)


def text_tower(case: Case, n_insert: int, chunk_tokens: int = CHUNK_SUFFIX_TOKENS) -> SharedPrefix:
    return SharedPrefix(case.backbone, class_names(case.classes), TEMPLATE, n_insert, chunk_tokens=chunk_tokens)


def plain_text_pass(oracle: Oracle) -> Step:
    return lambda: oracle.text_features().sum().backward()


def text_pass(tower: SharedPrefix, adapter) -> Step:
    return lambda: tower.adapted(adapter.text_tokens(), adapter.config.composition).sum().backward()


def step_gains(case: Case, rounds: int) -> Iterator[dict]:
    models = {name: model_of(case, case.adapter(), name) for name in ("float32", "bf16")}
    computed, cached, low = (
        model_step(models[precision], case, precision, given)
        for precision, given in (("float32", False), ("float32", True), ("bf16", True))
    )
    yield from rows(iter([Gain("whole step: frozen features given", computed, cached)]), rounds)
    rates = matmul_rates()
    yield row("whole step: products in bf16", rates["bf16"] / rates["float32"], *in_turn(cached, low, rounds))
    warm = in_turn(cached, cached, rounds)[0]
    as_found()
    yield row("whole step: freed memory is kept", None, in_turn(cached, cached, rounds)[0], warm)
    warm_heap(HEAP)


def no_grad(work: Callable[[], object]) -> Step:
    return torch.no_grad()(work)


def backward_of(x: Tensor, function: Callable[[Tensor], Tensor]) -> Step:
    """Forward and backward of a function of x."""
    x = x.detach().clone().requires_grad_()
    return lambda: torch.autograd.grad(function(x).sum(), x)


@contextmanager
def changed(module, name: str, value) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def with_value(module, name: str, value, work: Step) -> Step:
    def step() -> None:
        with changed(module, name, value):
            work()

    return step
