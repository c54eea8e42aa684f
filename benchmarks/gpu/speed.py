"""How fast steps are: against the plain model, against float32, and against the device's own matrix products."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.bench import Bench, Row, matmul_rate
from benchmarks.support.cases import Case, drawn_features, model_of, oracle_step, primed
from benchmarks.support.costs import Shape, our_step, published_step
from mmrl_core.clip.graphs import FrozenPass
from mmrl_core.clip.precision import DTYPES
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.step import TrainingStep

METHODS = ("mmrl", "mmrlpp")


def products(bench: Bench) -> Iterator[Row]:
    """Matrix products, of which the steps' shares are."""
    for precision in bench.precisions:
        rate = matmul_rate(bench, DTYPES[precision])
        yield Row(f"matrix products, {precision}", rate / 1e12, "TFLOP/s", more={"precision": precision})


def steps(bench: Bench) -> Iterator[Row]:
    """Whole steps on given frozen features, and those features."""
    rates = {precision: matmul_rate(bench, DTYPES[precision]) for precision in bench.precisions}
    for classes, batch in bench.sizes.cells:
        for method in METHODS:
            case = bench.case(method, classes, batch)
            plain = {name: bench.seconds(step) for name, step in oracle_steps(case, bench).items()}
            for name, taken in plain.items():
                share = published_step(Shape.of(case)).flops / taken / rates[name]
                yield row(case, f"plain model, {name}", taken, {"share": share})
            yield from of_case(bench, case, rates, plain)
            bench.free()


def oracle_steps(case: Case, bench: Bench) -> dict[str, Callable[[], object]]:
    """The plain model's, in float32 and, on a GPU, as one would speed it up: under autocast."""
    whole = oracle_step(case)

    def low() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            whole()

    return {"float32": whole, **({"bf16": low} if bench.is_cuda else {})}


def of_case(bench: Bench, case: Case, rates: dict[str, float], plain: dict[str, float]) -> Iterator[Row]:
    full = None
    for precision in bench.precisions:
        model = model_of(case, case.adapter(), precision)
        step, inputs = ours(model, case, precision)
        flops = our_step(Shape.of(case), model, cached=True).flops
        taken = bench.seconds(lambda step=step, inputs=inputs: step(*inputs))
        full, frozen = full or taken, bench.seconds(frozen_features(model, case))
        more = {
            "precision": precision, "ms": 1e3 * taken, "gflop": flops / 1e9, "share": flops / taken / rates[precision],
            "over_float32": full / taken, "frozen_ms": 1e3 * frozen,
            "over_plain": plain["float32"] / (taken + frozen),
            **({"over_plain_bf16": plain["bf16"] / (taken + frozen)} if "bf16" in plain else {}),
            "whole_gflop": our_step(Shape.of(case), model, cached=False).flops / 1e9, **half_of(case, precision),
        }  # fmt: skip
        if bench.is_cuda:
            launched, again = ours(model, case, precision)
            launched._run = launched._passes
            more["launched_ms"] = 1e3 * bench.seconds(lambda step=launched, inputs=again: step(*inputs))
        yield row(case, precision, taken, more)
        yield row(case, f"{precision}, frozen features", frozen, {"precision": precision, "frozen": True})


def ours(model: AdaptedCLIP, case: Case, precision: str) -> tuple[TrainingStep, tuple]:
    step = TrainingStep(model, [primed(model.adapter)], precision)
    return step, (drawn_features(case, model.image_tower.dtype), case.inputs()[1])


def frozen_features(model: AdaptedCLIP, case: Case) -> Callable[[], object]:
    run, images = FrozenPass(model.image_tower, case.batch), case.inputs()[0]
    return lambda: run(images)


def half_of(case: Case, precision: str) -> dict[str, float]:
    """What one of two workers has to do, and what it sends: for docs/scaling.md's model."""
    half = case._replace(batch=-(-case.batch // 2), classes=-(-case.classes // 2))
    with torch.no_grad():
        model = model_of(half, half.adapter(), precision)
    return {
        "method": case.method, "classes": case.classes, "batch": case.batch,
        "parameters": model.adapter.n_trainable, "embed": case.backbone.embed_dim,
        "half_gflop": our_step(Shape.of(half), model, cached=False).flops / 1e9,
    }  # fmt: skip


def row(case: Case, what: str, taken: float, more: dict) -> Row:
    return Row(f"{case.method}, {case.classes} classes, batch {case.batch}: {what}", 1e3 * taken, "ms", more=more)


def memory(bench: Bench) -> Iterator[Row]:
    """Peak of a step on given frozen features beyond the weights, by the number of classes."""
    from benchmarks.support.memory import peak_of

    precision, batch = "bf16", bench.sizes.cells[-1][1]
    for count in bench.sizes.many:
        case = Many(bench.backbone, "mmrlpp", count, batch)
        bench.free()
        if bench.is_cuda:
            before = torch.cuda.memory_allocated(bench.device)
            torch.cuda.reset_peak_memory_stats(bench.device)
            peak: float | None = one_step(case, precision) or torch.cuda.max_memory_allocated(bench.device) - before
        else:
            peak = peak_of(lambda case=case: one_step(case, precision))
        yield Row(f"{count} classes, batch {batch}, {precision}: model and step", (peak or 0) / 1e9, "GB",
                  more={"classes": count})  # fmt: skip


class Many(Case):
    """A case of any number of classes."""

    @property
    def names(self) -> list[str]:
        return [f"thing number {index}" for index in range(self.classes)]


def one_step(case: Case, precision: str) -> None:
    model = AdaptedCLIP(case.backbone, case.adapter(), case.names, "a photo of a {}.", precision)
    step, inputs = ours(model, case, precision)
    step(*inputs)


def left_over(bench: Bench) -> Iterator[Row]:
    """What captures leave allocated when their steps are gone."""
    bench.needs_cuda()
    case = bench.case("mmrlpp", *bench.sizes.cells[0])
    one_capture(case)
    bench.free()
    first = torch.cuda.memory_allocated(bench.device)
    for _ in range(4):
        one_capture(case)
    bench.free()
    left = torch.cuda.memory_allocated(bench.device) - first
    yield Row("left by four captures after a first one", left / 2**20, "MiB")


def one_capture(case: Case) -> None:
    model = model_of(case, case.adapter(), "bf16")
    step, inputs = ours(model, case, "bf16")
    step(*inputs)
