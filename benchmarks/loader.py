"""Training views a second, by one thread and by all, beside the images a second that a step takes.

Views are made as training makes them (mmrl_core/training/batches.py): batches of decoded images, a batch a thread at a
time.
"""

import os
import statistics

import numpy as np
import torch
from PIL import Image

from benchmarks.steps import medians_in_turn
from benchmarks.support.cases import Case, Plan, model_of, model_step
from benchmarks.support.machine import seconds
from benchmarks.support.memory import warm_heap
from benchmarks.support.table import Column, Table, notes
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.views import train_views

SIDES, CLASSES, BATCH = (256, 501), 50, 4
MODES = {"computed": ("float32", False), "cached bf16": ("bf16", True)}
COLUMNS = [
    Column("what", "what", "s", 40), Column("ratio", "ratio", ".1f", 8),
    Column("images/s", "images_per_second", ".1f", 10),
]  # fmt: skip


def measure(plan: Plan) -> list[dict]:
    """The loader section."""
    table = Table(f"Training views of {SIDES[0]} to {SIDES[1] - 1} pixel images, and the steps that take them", COLUMNS)
    steps = step_rates(plan)
    for threads, rate in view_rates(plan, n=32 if plan.quick else 384).items():
        table.add({"what": f"views, threads: {threads}", "threads": threads, "ratio": rate / steps["computed"],
                   "images_per_second": rate})  # fmt: skip
    for mode, rate in steps.items():
        table.add(
            {"what": f"step, frozen features {mode}", "ratio": rate / steps["computed"], "images_per_second": rate}
        )
    notes(f"ratio: over the step without cached features, {plan.methods[-1]}, {CLASSES} classes, batch {BATCH}.",
          "A step with cached features needs no view. Threads share the cores with the step.")  # fmt: skip
    return table.rows


def drawn_images(n: int) -> list[Image.Image]:
    """Blurred colours with a little noise."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(n):
        width, height = rng.integers(*SIDES, 2)
        blurred = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height))
        noise = rng.integers(-12, 13, (height, width, 3))
        images.append(Image.fromarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)))
    return images


def view_rates(plan: Plan, n: int) -> dict[int, float]:
    """Views a second by the number of threads."""
    backbone, images = plan.backbone, drawn_images(n)

    def load(start: int) -> torch.Tensor:
        names = [str(index) for index in range(start, start + BATCH)]
        part = images[start : start + BATCH]
        return train_views(part, backbone.view_settings, 1, 0, names)

    starts = range(0, n, BATCH)
    works = {1: lambda: list(map(load, starts)), os.cpu_count(): lambda: list(map_in_order(load, starts, size=1))}
    load(0)
    return {
        threads: n / statistics.median(seconds(work) for _ in range(plan.rounds)) for threads, work in works.items()
    }


def step_rates(plan: Plan) -> dict[str, float]:
    """Images a second that a step takes, by how it comes to frozen features."""
    case = Case(plan.backbone, plan.methods[-1], CLASSES, BATCH)
    steps = {
        mode: model_step(model_of(case, case.adapter(), precision), case, precision, cached)
        for mode, (precision, cached) in MODES.items()
    }
    warm_heap(2 << 30)
    for step in steps.values():
        step()
    return {mode: BATCH / taken for mode, taken in medians_in_turn(steps, plan.rounds).items()}
