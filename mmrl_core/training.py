"""fit(): the one training loop, whoever launches it.

A run depends on its settings and data alone: order and views are functions of (seed, epoch, item), nothing draws from
a generator that goes on between epochs. So a run that is resumed from a checkpoint ends where an unbroken one does.
"""

import io
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmrl_core.adapter import Adapter
from mmrl_core.backbone import Backbone
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.features import FeatureStore, FrozenFeatures, Loaded, image_digest, training_key
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import train_views, view_seed
from mmrl_core.errors import UserError
from mmrl_core.files import write_bytes
from mmrl_core.memory import keep_freed_memory
from mmrl_core.model import AdaptedCLIP
from mmrl_core.precision import settle_precision
from mmrl_core.step import TrainingStep
from mmrl_core.towers import Frozen

BETAS, WEIGHT_DECAY = (0.9, 0.999), 5e-4
WARMUP_LR = 1e-5
CHECKPOINT = "checkpoint.pt"
SMALL = 12 * 384**2  # layers x width^2: a ViT-S

Report = Callable[[int, dict[str, float]], None]


class Fitted(NamedTuple):
    """The trained adapter, and every epoch's metrics (means over its steps), those before a resume included."""

    adapter: Adapter
    history: list[dict[str, float]]


def settle_process(backbone: Backbone) -> None:
    """What a process that trains or evaluates sets for itself: how it keeps memory, and its threads.

    A small backbone gets one CPU thread: more are no faster, and sums in another order would give other bits.
    """
    keep_freed_memory()
    if len(backbone.image_blocks) * backbone.image_width**2 < SMALL:
        torch.set_num_threads(1)


def new_optimizer(adapter: Adapter, lr: float) -> torch.optim.AdamW:
    """AdamW over every trainable tensor, weight decay included."""
    return torch.optim.AdamW(adapter.parameters(), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)


def lr_at(epoch: int, train: TrainConfig) -> float:
    """Learning rate of an epoch, counted from 0: constant warm-up, then a cosine that does not reach zero."""
    if epoch < train.warmup_epochs:
        return WARMUP_LR
    return 0.5 * train.lr * (1 + math.cos(math.pi * (epoch - train.warmup_epochs) / train.epochs))


def new_adapter(config: AdapterConfig, backbone: Backbone, seed: int) -> Adapter:
    """A freshly initialised adapter, a function of its configuration and the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return Adapter(config, backbone).to(backbone.device)


def batches(n: int, train: TrainConfig, epoch: int) -> Iterator[list[int]]:
    """Item indices of every batch of an epoch; the last partial batch is dropped when there is a full one."""
    generator = torch.Generator().manual_seed(view_seed(train.seed, epoch, "order") >> 1)
    order = torch.randperm(n, generator=generator).tolist()
    size = min(train.batch_size, n)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


def fit(
    backbone: Backbone,
    config: AdapterConfig,
    train: TrainConfig,
    data: ImageSet,
    *,
    report: Report | None = None,
    checkpoints: str | Path | None = None,
    store: FeatureStore | None = None,
) -> Fitted:
    """Train an adapter; the last epoch's weights are the result.

    `report(epoch, metrics)` is called for every epoch, counted from 0. With `checkpoints`, a folder, the state is kept
    there after every epoch and a later call with the same folder goes on from it, reporting the epochs behind it
    first. `store` keeps frozen features for other calls. Raises UserError when loss or gradient stop being finite, and
    for a precision that the backbone's device does not have.
    """
    if not data.items:
        raise UserError("there is no training image; prepare at least one shot of one class")
    adapter = new_adapter(config, backbone, train.seed)
    precision = settle_precision(train.precision, backbone.device)
    model = AdaptedCLIP(backbone, adapter, data.class_names, data.template, precision)
    step = TrainingStep(model, new_optimizer(adapter, train.lr), precision)
    views = TrainingViews(data, train, FrozenFeatures(model.image_tower, train.batch_size, store))
    history = _restore(checkpoints, adapter, step)
    report = report or (lambda epoch, metrics: None)
    for epoch, metrics in enumerate(history):
        report(epoch, metrics)
    for epoch in range(len(history), train.epochs):
        history.append(_run_epoch(step, views, train, epoch))
        _keep(checkpoints, adapter, step, history)
        report(epoch, history[-1])
    return Fitted(adapter, history)


def _run_epoch(step: TrainingStep, views: "TrainingViews", train: TrainConfig, epoch: int) -> dict[str, float]:
    lr = lr_at(epoch, train)
    for group in step.optimizer.param_groups:
        group["lr"] = lr
    terms = [step(frozen, labels) for frozen, labels in views.batches(epoch)]
    rows = step.check(epoch, torch.stack(terms))
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return {**means, "lr": lr}


class TrainingViews:
    """The batches of every epoch as frozen features and labels; threads read and augment ahead of the step."""

    def __init__(self, data: ImageSet, train: TrainConfig, features: FrozenFeatures):
        self.data, self.train, self.features = data, train, features
        self.backbone = features.tower.backbone
        self.digests = [image_digest(image) for image in data.images] if features.shelf else data.items

    def batches(self, epoch: int) -> Iterator[tuple[Frozen, Tensor]]:
        """Frozen features of B views and labels (B,), on the backbone's device."""
        jobs = batches(len(self.data.items), self.train, epoch)
        for loaded, labels in map_in_order(partial(self._load, epoch), jobs, size=1):
            yield self.features.frozen(loaded), labels.to(self.backbone.device, non_blocking=True)

    def _load(self, epoch: int, indices: list[int]) -> tuple[Loaded, Tensor]:
        items, seed = [self.data.items[index] for index in indices], self.train.seed
        keys = [training_key(self.digests[index], seed, epoch, self.data.items[index]) for index in indices]

        def views(missing: list[int]) -> Tensor:
            images, names = [self.data.images[indices[i]] for i in missing], [items[i] for i in missing]
            backbone = self.backbone
            return train_views(images, backbone.image_size, seed, epoch, names, backbone.mean, backbone.std)

        return self.features.load(keys, views), torch.tensor([self.data.labels[index] for index in indices])


def _keep(folder: str | Path | None, adapter: Adapter, step: TrainingStep, history: list[dict[str, float]]) -> None:
    if folder is None:
        return
    buffer = io.BytesIO()
    state = {"history": history, "adapter": adapter.state_dict(), "optimizer": step.optimizer.state_dict()}
    torch.save({**state, "scaler": step.scaler.state_dict()}, buffer)
    write_bytes(Path(folder) / CHECKPOINT, buffer.getvalue())


def _restore(folder: str | Path | None, adapter: Adapter, step: TrainingStep) -> list[dict[str, float]]:
    """Load a checkpoint if there is a whole one; returns the metrics of the epochs it has behind it."""
    path = Path(folder or "") / CHECKPOINT
    if folder is None or not path.exists():
        return []
    try:
        state = torch.load(path, map_location=adapter.space.device, weights_only=True)
        weights, moments, scale, history = (state[key] for key in ("adapter", "optimizer", "scaler", "history"))
    except Exception as error:  # whatever damage makes of it, training from the start is right
        logging.getLogger(__name__).warning("%s is damaged (%s): starting over", path, type(error).__name__)
        return []
    adapter.load_state_dict(weights)
    step.optimizer.load_state_dict(moments)
    step.scaler.load_state_dict(scale)
    return history
