"""fit(): the one training loop, whoever launches it.

A run depends on its settings and data alone: order and views are functions of (seed, epoch, item), nothing draws from
a generator that goes on between epochs. So a run that is resumed from a checkpoint ends where an unbroken one does.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmrl_core.adapter import Adapter
from mmrl_core.backbone import Backbone
from mmrl_core.checkpoints import EVERY, Checkpoints, Nowhere, newest, opened, pack, unpack
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.features import FeatureStore, FrozenFeatures, Loaded, image_digest, training_key
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import train_views, view_seed
from mmrl_core.errors import UserError
from mmrl_core.memory import keep_freed_memory
from mmrl_core.model import AdaptedCLIP
from mmrl_core.optimizer import AdamW
from mmrl_core.precision import settle_precision
from mmrl_core.step import TERMS, TrainingStep
from mmrl_core.towers import Frozen
from mmrl_core.workers import Workers

BETAS, WEIGHT_DECAY = (0.9, 0.999), 5e-4
WARMUP_LR = 1e-5
SMALL = 12 * 384**2  # layers x width^2: a ViT-S

Report = Callable[[int, dict[str, float]], None]


class Fitted(NamedTuple):
    """The trained adapter, every epoch's metrics (means over its steps), those before a resume included, and the
    precision, where it was `auto` the one that the device settled."""

    adapter: Adapter
    history: list[dict[str, float]]
    precision: str


def settle_process(backbone: Backbone) -> None:
    """What a process that trains or evaluates sets for itself: how it keeps memory, and its threads."""
    keep_freed_memory()
    settle_threads(backbone)


def settle_threads(backbone: Backbone) -> None:
    """Give a small backbone one CPU thread: more are no faster, and sums in another order would give other bits."""
    if is_small(backbone):
        torch.set_num_threads(1)


def is_small(backbone: Backbone) -> bool:
    """Whether its image tower is smaller than a ViT-S: a few-shot training then takes seconds."""
    return len(backbone.image_blocks) * backbone.image_width**2 < SMALL


def new_optimizer(adapter: Adapter, lr: float) -> AdamW:
    """AdamW over every trainable tensor, weight decay included."""
    return AdamW(adapter.parameters(), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)


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
    checkpoints: str | Path | Checkpoints | None = None,
    store: FeatureStore | None = None,
    workers: Workers | None = None,
) -> Fitted:
    """Train an adapter; the last epoch's weights are the result, the same on every one of `workers`.

    `report(epoch, metrics)` is called for every epoch, counted from 0. With `checkpoints`, a folder or a store of them,
    the state is kept after every epoch and every EVERY steps, and a later call goes on from it, reporting the epochs
    behind it first, whatever the number of workers was. `store` keeps frozen features for other calls. Raises
    UserError when loss or gradient stop being finite, for a precision that the backbone's device does not have, and
    for more workers than a batch has images or the data classes.
    """
    workers = workers or Workers()
    if not data.items:
        raise UserError("there is no training image; prepare at least one shot of one class")
    check_division(workers.size, train.batch_size, len(data.items), len(data.class_names))
    adapter = new_adapter(config, backbone, train.seed)
    precision = settle_precision(train.precision, backbone.device)
    model = AdaptedCLIP(backbone, adapter, data.class_names, data.template, precision, workers)
    batch = min(train.batch_size, len(data.items))
    step = TrainingStep(model, new_optimizer(adapter, train.lr), precision, workers.fraction(batch))
    features = FrozenFeatures(model.image_tower, workers.largest_share(train.batch_size), store)
    run = Run(step, TrainingViews(data, train, features, workers), train, opened(checkpoints))
    return Fitted(adapter, run.through(report or (lambda epoch, metrics: None)), precision)


def check_division(workers: int, batch_size: int, n_items: int, n_classes: int) -> None:
    """Raises UserError for more workers than a batch has images, or than there are classes."""
    for what, count in (("images a batch", min(batch_size, n_items)), ("classes", n_classes)):
        if workers > count:
            raise UserError(f"{workers} workers cannot share {count} {what}; lower cluster.workers")


class Run:
    """A training under way: how far it is, and the state that a checkpoint holds."""

    def __init__(self, step: TrainingStep, views: "TrainingViews", train: TrainConfig, checkpoints: Checkpoints):
        self.step, self.views, self.train, self.workers = step, views, train, step.workers
        self.checkpoints = Nowhere() if self.workers.rank else checkpoints  # two lists of what is kept might differ
        self.history: list[dict[str, float]] = []  # of whole epochs
        self.rows = torch.empty(0, len(TERMS))  # terms of the present epoch's steps, of all workers together

    def through(self, report: Report) -> list[dict[str, float]]:
        """Train from where the checkpoints end to the last epoch; the metrics of all epochs."""
        self._restore()
        self.workers.agree(list(self.step.parameters))
        for epoch, metrics in enumerate(self.history):
            report(epoch, metrics)
        for epoch in range(len(self.history), self.train.epochs):
            self._epoch(epoch)
            report(epoch, self.history[-1])
        return self.history

    def _epoch(self, epoch: int) -> None:
        lr = lr_at(epoch, self.train)
        for group in self.step.optimizer.param_groups:
            group["lr"] = lr
        terms: list[Tensor] = []
        for frozen, labels in self.views.batches(epoch, start=len(self.rows)):
            if len(terms) == EVERY:
                self._enter(epoch, terms)
                self._keep(epoch)
            terms.append(self.step(frozen, labels))
        rows = self._enter(epoch, terms)
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        self.history.append({**means, "lr": lr})
        self.rows = self.rows[:0]
        self._keep(epoch + 1)

    def _enter(self, epoch: int, terms: list[Tensor]) -> list[dict[str, float]]:
        """Add steps to the epoch's rows, summed over the workers; a term that is not finite ends the training."""
        self.rows = torch.cat([self.rows, self.workers.sum(torch.stack(terms)).cpu()])
        terms.clear()
        return self.step.check(epoch, self.rows)

    def _keep(self, epoch: int) -> None:
        if not isinstance(self.checkpoints, Nowhere):
            self.checkpoints.save(pack(self._state()), epoch, len(self.rows))

    def _state(self) -> dict:
        step, adapter = self.step, self.step.model.adapter
        return {"history": self.history, "rows": self.rows, "adapter": adapter.state_dict(),
                "optimizer": step.optimizer.state_dict(), "scaler": step.scaler.state_dict()}  # fmt: skip

    def _restore(self) -> None:
        device, keys = self.step.model.adapter.space.device, self._state()
        content = self.workers.same(newest(self.checkpoints, keys), device)
        if not content:
            return
        state = unpack(content, device, keys)
        self.step.model.adapter.load_state_dict(state["adapter"])
        self.step.optimizer.load_state_dict(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        self.history, self.rows = state["history"], state["rows"].cpu()


class TrainingViews:
    """The batches of every epoch as frozen features and labels; threads read and augment ahead of the step."""

    def __init__(self, data: ImageSet, train: TrainConfig, features: FrozenFeatures, workers: Workers):
        self.data, self.train, self.features, self.workers = data, train, features, workers
        self.backbone = features.tower.backbone
        self.digests = [image_digest(image) for image in data.images] if features.shelf else data.items

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Frozen, Tensor]]:
        """Frozen features of this worker's share of B views, and their labels, from step `start` on.

        On the backbone's device.
        """
        whole = islice(batches(len(self.data.items), self.train, epoch), start, None)
        jobs = (self.workers.share(indices) for indices in whole)
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
