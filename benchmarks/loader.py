"""Training views a second, fast ones and Pillow's in turn, by one thread and by all, beside the images a step takes.

Images are drawn, of 500 x 375 pixels, and views are made as training makes them (mmrl_core/training/batches.py): from
images that a set keeps decoded, and from the JPEGs that it keeps where there is no room. `pillow` is what earlier
releases did, to the bit.
"""

import io
import os
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from benchmarks.steps import medians_in_turn
from benchmarks.support.cases import Case, Plan, model_of, model_step
from benchmarks.support.machine import seconds
from benchmarks.support.memory import warm_heap
from benchmarks.support.table import Column, Table, notes
from mmrl_core.data.images import decode
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.pixels import Pixels, pixels
from mmrl_core.data.views import ViewSettings, train_view

SIZE, CLASSES, BATCH = (500, 375), 50, 4
MODES = {"computed": ("float32", False), "cached bf16": ("bf16", True)}
COLUMNS = [
    Column("what", "what", "s", 40), Column("ratio", "ratio", ".1f", 8),
    Column("images/s", "images_per_second", ".1f", 10),
]  # fmt: skip
View = Callable[[int], torch.Tensor]


def measure(plan: Plan) -> list[dict]:
    """The loader section."""
    table = Table(f"Training views of JPEGs of {SIZE[0]} x {SIZE[1]} pixels, and the steps that take them", COLUMNS)
    rates = view_rates(plan, n=16 if plan.quick else 128)
    for (form, kind, threads), rate in rates.items():
        table.add({"what": f"{form}, {kind}, threads: {threads}", "form": form, "kind": kind, "threads": threads,
                   "ratio": rate / rates[form, "pillow", threads], "images_per_second": rate})  # fmt: skip
    steps = step_rates(plan)
    for mode, rate in steps.items():
        table.add({"what": f"step, frozen features {mode}", "ratio": rate / steps["computed"],
                   "images_per_second": rate})  # fmt: skip
    notes(f"ratio: of views over Pillow's; of a step over the one without cached features, {plan.methods[-1]}, "
          f"{CLASSES} classes, batch {BATCH}.", "A step with cached features needs no view. Threads share the cores "
          "with the step.")  # fmt: skip
    return table.rows


def drawn_images(n: int) -> list[bytes]:
    """Blurred colours with a little noise, as JPEGs of about 70 kB."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(n):
        blurred = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(SIZE)
        noise = rng.integers(-12, 13, (SIZE[1], SIZE[0], 3))
        encoded = io.BytesIO()
        Image.fromarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=90)
        images.append(encoded.getvalue())
    return images


def views_of(files: list[bytes], settings: ViewSettings) -> dict[tuple[str, str], View]:
    """What makes a view, by the form in which images are at hand and by `train.views`."""
    whole = [decode(file, "drawn") for file in files]
    kept = [Pixels.of(image) for image in whole]

    def view(image: Image.Image | Pixels, index: int, kind: str) -> torch.Tensor:
        return train_view(image, settings, 1, 0, str(index), kind)

    return {
        ("decoded", "pillow"): lambda index: view(whole[index], index, "pillow"),
        ("decoded", "fast"): lambda index: view(kept[index], index, "fast"),
        ("encoded", "pillow"): lambda index: view(decode(files[index], "drawn"), index, "pillow"),
        ("encoded", "fast"): lambda index: view(pixels(files[index], "drawn", settings.size), index, "fast"),
    }


def view_rates(plan: Plan, n: int) -> dict[tuple[str, str, int], float]:
    """Views a second by form, kind and number of threads: the fastest of rounds in turn."""
    made = views_of(drawn_images(n), plan.backbone.view_settings._replace(size=224))
    works = {}
    for (form, kind), view in made.items():
        view(0)
        works[form, kind, 1] = lambda view=view: list(map(view, range(n)))
        works[form, kind, os.cpu_count() or 1] = lambda view=view: list(map_in_order(view, range(n), size=BATCH))
    rounds = [{key: seconds(work) for key, work in works.items()} for _ in range(plan.rounds)]
    return {key: n / min(one[key] for one in rounds) for key in works}


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
