"""Training steps and evaluation of every family of towers, against the plain model from open_clip's own modules.

A model of each family at the size that people use, with random weights: published sizes decide the cost, not values.
Both steps are those of steps.py. Evaluation is `Backbone.encode_image` beside open_clip's `encode_image`.
"""

from collections.abc import Iterator

from benchmarks.counting import counted_flops
from benchmarks.families.models import FAMILIES, backbone_of
from benchmarks.steps import medians_in_turn
from benchmarks.support.cases import Case, Plan, Step, model_of, model_step, oracle_step
from benchmarks.support.memory import warm_heap
from benchmarks.support.table import Column, Table, notes

CLASSES, BATCH, IMAGES = 50, 4, 16
COLUMNS = [
    Column("model", "model", "s", 28), Column("method", "method", "s", 9), Column("computed", "computed", ".2f", 10),
    Column("FLOPs", "computed_flops", ".2f", 7), Column("given", "given", ".2f", 8),
    Column("FLOPs", "given_flops", ".2f", 7), Column("ms", "computed_ms", ".0f", 8), Column("ms", "given_ms", ".0f", 8),
    Column("oracle", "oracle_ms", ".0f", 8), Column("evaluation", "evaluation", ".2f", 12),
    Column("ms", "evaluation_ms", ".0f", 8), Column("n", "rounds", "d", 4),
]  # fmt: skip


def measure(plan: Plan) -> list[dict]:
    """The families section, for the last of the methods; `--quick` takes the models cut to two layers."""
    table = Table(f"Families: {CLASSES} classes, batches of {BATCH}, float32", COLUMNS)
    for name in FAMILIES:
        table.extend(rows(name, plan))
    notes(
        "computed, given: the oracle's time for a step over ours, which computes the frozen features or is given them,",
        "with the same of operations, and ours in ms. evaluation: open_clip's encode_image over ours for",
        f"{IMAGES} images, and ours in ms. n: rounds, of which the median counts. All with the allocator keeping freed",
        "memory.",
    )
    return table.rows


def rows(name: str, plan: Plan) -> Iterator[dict]:
    """One row a family; its model is gone before the next one's is made."""
    case = Case(backbone_of(name, plan.quick), plan.methods[-1], CLASSES, BATCH)
    warm_heap(None)
    steps = steps_of(case)
    flops = {key: counted_flops(step) for key, step in steps.items()}
    works = steps | encoders_of(case)
    for work in works.values():
        work()
    times = medians_in_turn(works, plan.rounds)
    yield {
        "model": name, "method": case.method, "rounds": plan.rounds,
        "computed": times["oracle"] / times["computed"], "given": times["oracle"] / times["given"],
        "computed_flops": flops["oracle"] / flops["computed"], "given_flops": flops["oracle"] / flops["given"],
        "evaluation": times["open_clip"] / times["evaluation"],
        **{f"{key}_ms": 1e3 * taken for key, taken in times.items()},
    }  # fmt: skip


def steps_of(case: Case) -> dict[str, Step]:
    model = model_of(case, case.adapter(), "float32")
    ours = {key: model_step(model, case, "float32", cached) for key, cached in (("computed", False), ("given", True))}
    return {"oracle": oracle_step(case), **ours}


def encoders_of(case: Case) -> dict[str, Step]:
    backbone = case.backbone
    images, _ = case._replace(batch=IMAGES).inputs()
    return {
        "open_clip": lambda: backbone.clip.encode_image(images, normalize=True),
        "evaluation": lambda: backbone.encode_image(images),
    }
