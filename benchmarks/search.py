"""A whole search's training against as many trainings by the plain model: the same images, views, epochs and settings.

Ours are the trials of one search, which share frozen features in a store; the time of filling it is theirs. The plain
model trains from the views each time, as separate runs of the published code do; starting processes and loading the
backbone is counted for neither.
"""

import tempfile
import time

import numpy as np
import torch
from PIL import Image

from benchmarks.support.cases import TEMPLATE, Plan, class_names
from benchmarks.support.memory import as_found, warm_heap
from benchmarks.support.table import Column, Table, notes
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import normalised, train_views
from mmrl_core.training.batches import batches
from mmrl_core.training.fit import fit, lr_at, new_adapter, new_optimizer
from tests.oracle import Oracle

TRIALS, DEPTHS, IMAGES, CLASSES = 12, 3, 16, 50
TRAIN = TrainConfig(epochs=2, batch_size=4, warmup_epochs=1)
COLUMNS = [
    Column("training", "training", "s", 42), Column("ratio", "ratio", ".2f", 7),
    Column("found", "found", ".2f", 7), Column("seconds", "seconds", ".1f", 9),
    Column("trials", "trials", "d", 8), Column("measured", "measured", "d", 10),
]  # fmt: skip


def measure(plan: Plan) -> list[dict]:
    """The search section, for the last of the methods."""
    backbone, data, configs = plan.backbone, drawn_set(plan.backbone, IMAGES, CLASSES), trials(plan)
    steps = TRAIN.epochs * (IMAGES // TRAIN.batch_size)
    depths = sorted({config.insertion_depth for config in configs})
    table = Table(f"A search: {TRIALS} trials of {steps} steps over insertion depths {depths}, {plan.methods[-1]}, "
                  f"{CLASSES} classes, batch {TRAIN.batch_size}, float32", COLUMNS)  # fmt: skip
    measured = configs if plan.quick else configs[: len(depths)]  # depths come by turns
    as_found()
    found = plain_search(backbone, measured, data)
    warm_heap(4 << 30)
    first, rest = searched(backbone, configs, data)
    plain = plain_search(backbone, measured, data)
    for training, taken, count, done in (
        ("the search, filling the store included", first + rest, TRIALS, TRIALS),
        ("its first trial, which fills the store", first, 1, 1),
        ("the plain model", plain, TRIALS, len(measured)),
        ("the plain model, glibc's own settings", found, TRIALS, len(measured)),
    ):
        whole = count == TRIALS
        table.add({"training": training, "ratio": plain / taken if whole else None, "seconds": taken, "trials": count,
                   "found": found / taken if whole else None, "measured": done})  # fmt: skip
    notes(
        "ratio: the plain model's time over it, both with the allocator keeping freed memory; found: the plain model",
        "under glibc's own settings over it. measured: where its trainings are fewer than the trials, one",
        "a depth was taken and multiplied.",
    )
    return table.rows


def plain_search(backbone: Backbone, measured: list[AdapterConfig], data: ImageSet) -> float:
    """Seconds of all trials by the plain model, from those that are measured."""
    return TRIALS / len(measured) * sum(timed_oracle(backbone, config, data) for config in measured)


def trials(plan: Plan) -> list[AdapterConfig]:
    """Insertion depths by turns (4, 5, 6 of 12) and another regularisation each."""
    first = plan.backbone.depth // 3
    return [AdapterConfig(method=plan.methods[-1], insertion_depth=first + i % DEPTHS, reg_weight=0.5 + i)
            for i in range(TRIALS)]  # fmt: skip


def drawn_set(backbone: Backbone, n: int, classes: int) -> ImageSet:
    """Noise photographs, a little larger than the backbone's images, each of another class."""
    rng, side = np.random.default_rng(0), backbone.image_size * 5 // 4
    images = [Image.fromarray(rng.integers(0, 256, (side, side + 10 * i, 3), dtype=np.uint8)) for i in range(n)]
    return ImageSet([f"{i}.jpg" for i in range(n)], images, list(range(n)), class_names(classes), TEMPLATE)


def searched(backbone: Backbone, configs: list[AdapterConfig], data: ImageSet) -> tuple[float, float]:
    """Seconds of the first trial and of all others."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = FeatureStore(folder, budget=4e9, depth=min(config.insertion_depth for config in configs))
        fit(backbone, configs[0], TRAIN, data, store=store)
        filled = time.perf_counter()
        for config in configs[1:]:
            fit(backbone, config, TRAIN, data, store=store)
        return filled - start, time.perf_counter() - filled


def timed_oracle(backbone: Backbone, config: AdapterConfig, data: ImageSet) -> float:
    """Seconds of a training by the plain model."""
    start = time.perf_counter()
    adapter = new_adapter(config, backbone, TRAIN.seed)
    oracle = Oracle(backbone.clip, backbone.tokenizer, adapter, data.class_names, data.template)
    optimizer = new_optimizer(adapter, TRAIN.lr)
    with torch.no_grad():
        zero_shot_text = backbone.clip.encode_text(oracle.token_ids, normalize=True)
    for epoch in range(TRAIN.epochs):
        optimizer.param_groups[0]["lr"] = lr_at(epoch, TRAIN)
        for indices in batches(len(data.items), TRAIN, epoch):
            optimizer.zero_grad()
            views, labels = batch_of(backbone, data, epoch, indices)
            oracle.loss(views, labels, zero_shot_text).backward()
            optimizer.step()
    return time.perf_counter() - start


def batch_of(backbone: Backbone, data: ImageSet, epoch: int, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    images, items = [data.images[index] for index in indices], [data.items[index] for index in indices]
    squares = train_views(images, backbone.view_settings, TRAIN.seed, epoch, items)
    views = normalised(squares, backbone.view_settings)
    return views, torch.tensor([data.labels[index] for index in indices])
