"""Images a second through an adapted model without cached features, against open_clip's own image encoder.

One batch of a ViT's images, already preprocessed, class features computed beforehand, as evaluation and prediction do.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.steps import medians_in_turn
from benchmarks.support.cases import Case, Plan, model_of
from benchmarks.support.machine import seconds
from benchmarks.support.memory import as_found, warm_heap
from benchmarks.support.table import Column, Table, notes
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.model import AdaptedCLIP

BATCH, CLASSES = 64, 50
COLUMNS = [
    Column("model", "model", "s", 30), Column("precision", "precision", "s", 11), Column("ratio", "ratio", ".2f", 7),
    Column("found", "ratio_found", ".2f", 7),
    Column("images/s", "images_per_second", ".1f", 10), Column("ms", "ms", ".0f", 9),
]  # fmt: skip

Work = Callable[[Tensor], object]


def measure(plan: Plan) -> list[dict]:
    """The evaluation section, for the last of the methods: MMRL++ leaves out less than MMRL."""
    case = Case(plan.backbone, plan.methods[-1], CLASSES, 8 if plan.quick else BATCH)
    images, _ = case.inputs()
    table = Table(f"Evaluation: {case.method}, {CLASSES} classes, batches of {case.batch} images", COLUMNS)
    for precision in ("float32", "bf16"):
        works = {"open_clip encode_image": encoder(case, precision), **ours(model_of(case, case.adapter(), precision))}
        table.extend(rows(works, images, precision, plan.rounds))
    notes(
        "ratio: images a second over those of open_clip's encode_image (bf16: its weights and activations cast), both",
        "with the allocator keeping freed memory. found: over open_clip under glibc's own settings, one pass.",
    )
    return table.rows


def encoder(case: Case, precision: str) -> Work:
    """open_clip's encode_image; in bf16 a copy of its image tower in that type."""
    clip = case.backbone.clip
    if precision == "float32":
        return clip.encode_image
    visual = copy.deepcopy(clip.visual).bfloat16()
    return lambda images: visual(images.bfloat16())


def ours(model: AdaptedCLIP) -> dict[str, Work]:
    """The adapted model alone, with the zero-shot scores as `scores.score` has them, and folded."""
    text, tower = model.text_features().detach(), model.image_tower
    trained = torch.ones(len(model.class_names), dtype=torch.bool)

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        frozen = tower.frozen(images, tower.chunk(len(images)))
        adapted = joint_logits(model.from_trunk(frozen.trunk, text), trained)
        return adapted.softmax(-1), model.zero_shot_logits(frozen.zero_shot).softmax(-1)

    works = {"adapted": lambda images: model.from_trunk(tower.trunk(images), text), "adapted and zero-shot": both}
    return works | folded(model)


def folded(model: AdaptedCLIP) -> dict[str, Work]:
    """What prediction runs, where the package has it."""
    try:
        from mmrl_core.method.folded import FoldedCLIP
    except ImportError:
        notes("folded: mmrl_core has no folded form")
        return {}
    return {"folded, as for prediction": FoldedCLIP.from_model(model)}


@torch.inference_mode()
def rows(works: dict[str, Work], images: Tensor, precision: str, rounds: int) -> list[dict]:
    first, n = next(iter(works)), len(images)
    as_found()
    for work in works.values():
        work(images[: n // 8])
    found = seconds(lambda: works[first](images))
    warm_heap(2 << 30)
    times = medians_in_turn({name: lambda work=work: work(images) for name, work in works.items()}, rounds)
    return [
        {"model": name, "precision": precision, "ratio": times[first] / taken, "ratio_found": found / taken,
         "images_per_second": n / taken, "ms": 1e3 * taken}
        for name, taken in times.items()
    ]  # fmt: skip
