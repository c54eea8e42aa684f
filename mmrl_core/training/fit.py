"""fit(): the one training loop, whoever launches it.

A run depends on its settings and data alone: order and views are functions of (seed, epoch, item), nothing draws from
a generator that outlives an epoch. So a run that is resumed from a checkpoint ends where an unbroken one does.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore, FrozenFeatures
from mmrl_core.clip.precision import settle_precision
from mmrl_core.clip.towers import CHUNK_TOKENS
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.distributed import Workers
from mmrl_core.errors import UserError
from mmrl_core.estimate.fits import refuse_too_large
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_stack import stackable
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.batches import TrainingViews
from mmrl_core.training.checkpoints import EVERY, Checkpoints, NoCheckpoints, as_checkpoints, newest, pack, unpack
from mmrl_core.training.optimizer import AdamW
from mmrl_core.training.stack import StackedCLIP
from mmrl_core.training.step import TERMS, TrainingStep
from mmrl_core.training.validation import Validation

BETAS, WEIGHT_DECAY = (0.9, 0.999), 5e-4
WARMUP_LR = 1e-5
KEPT_FLOATS = 24  # a layer's share, a token and unit of width: 10 to 14 are kept for backward, the rest is room

EpochCallback = Callable[[int, dict[str, float]], None]


class Fitted(NamedTuple):
    """The trained adapter, the metrics of every epoch (means over its steps), those before a resume included, and the
    precision that it was trained in (never `auto`)."""

    adapter: Adapter
    history: list[dict[str, float]]
    precision: str


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


class Training(NamedTuple):
    """What one run is trained with."""

    adapter: AdapterConfig
    train: TrainConfig
    data: ImageSet


def fit(
    backbone: Backbone,
    config: AdapterConfig,
    train: TrainConfig,
    data: ImageSet,
    *,
    val: ImageSet | None = None,
    report: EpochCallback | None = None,
    checkpoints: str | Path | Checkpoints | None = None,
    store: FeatureStore | None = None,
    workers: Workers | None = None,
) -> Fitted:
    """Train an adapter; the last epoch's weights are the result, the same on every one of `workers`.

    The images of `val`, with the classes of `data`, are classified after every epoch: `val_accuracy` and `val_nll` are
    then among its metrics (validation.py), and nothing else changes. `report(epoch, metrics)` is called for every
    epoch, counted from 0. With `checkpoints`, a folder or a store of them, the state is kept after every epoch and
    every EVERY steps, and a later call goes on from it, reporting the epochs behind it first, whatever the number of
    workers was. `store` keeps frozen features for other calls. Raises UserError when loss or gradient stop being
    finite, for a precision that the backbone's device does not have, and for more workers than a batch has images or
    the data classes.
    """
    workers = workers or Workers()
    if not data.items:
        raise UserError("there is no training image; prepare at least one shot of one class")
    check_division(workers.size, train.batch_size, len(data.items), len(data.class_names))
    run = _begin(backbone, [Training(config, train, data)], as_checkpoints(checkpoints), store, workers)
    run.validate([val])
    return run.train([report or _no_report])[0]


def fit_together(
    backbone: Backbone, trainings: Sequence[Training], *, store: FeatureStore | None = None
) -> list[Fitted]:
    """What `fit` makes of each but for rounding, with the steps of every group taken together. Raises as `fit` does."""
    fitted: dict[int, Fitted] = {}
    for group in groups(backbone, trainings):
        fitted |= zip(group, fit_group(backbone, [trainings[index] for index in group], store=store), strict=True)
    return [fitted[index] for index in range(len(trainings))]


def fit_group(
    backbone: Backbone,
    trainings: Sequence[Training],
    *,
    vals: Sequence[ImageSet | None] | None = None,
    reports: Sequence[EpochCallback] | None = None,
    checkpoints: str | Path | Checkpoints | None = None,
    store: FeatureStore | None = None,
) -> list[Fitted]:
    """What `fit` makes of each of one group (`groups`) but for rounding, all steps taken together.

    Each has its own `vals` and `reports`; the checkpoints are those of all, and go on for the same trainings in the
    same order alone. A group of one gives the bits of `fit`. Raises as `fit` does, also where one of them diverges.
    """
    run = _begin(backbone, trainings, as_checkpoints(checkpoints), store, Workers())
    run.validate(vals or [None] * len(trainings))
    return run.train(reports or [_no_report] * len(trainings))


def _no_report(epoch: int, metrics: dict[str, float]) -> None:
    pass


def groups(backbone: Backbone, trainings: Sequence[Training]) -> list[list[int]]:
    """Which of the trainings take their steps together: those of one kind, as many as is worth it and memory allows.

    Of one kind are runs whose adapters stack (`adapter_stack.py`) and whose epochs have the same steps: partitions and
    seeds of one setting, and settings that differ in regularisation, alpha or learning rate.
    """
    kinds: dict[Hashable, list[int]] = {}
    for index, training in enumerate(trainings):
        kinds.setdefault(_kind(training), []).append(index)
    together = []
    for alike in kinds.values():
        config, train, data = trainings[alike[0]]
        size = most_together(backbone, config, min(train.batch_size, len(data.items)))
        together += [alike[start : start + size] for start in range(0, len(alike), size)]
    return together


def _kind(training: Training) -> Hashable:
    """Equal for runs that can take their steps together."""
    config, train, data = training
    batch = min(train.batch_size, len(data.items))
    shape = batch, len(data.items) // max(1, batch), len(data.class_names), data.template
    return stackable(config), train.epochs, train.precision, *shape


def most_together(backbone: Backbone, config: AdapterConfig, batch: int) -> int:
    """How many runs with batches of `batch` images take their steps together.

    On a CPU what fills a chunk of the image tower, where products reach their full rate; on a GPU what takes half of
    its memory.
    """
    tokens = batch * (backbone.image_tokens + config.n_tokens)
    if backbone.device.type != "cuda":
        return max(1, CHUNK_TOKENS // tokens)
    layers = backbone.depth - config.insertion_depth + 1
    memory = torch.cuda.get_device_properties(backbone.device).total_memory
    return max(1, int(memory / 2 / (tokens * layers * backbone.image_width * KEPT_FLOATS * 4)))


def _begin(
    backbone: Backbone, trainings: Sequence[Training], checkpoints: Checkpoints, store: FeatureStore | None,
    workers: Workers,
) -> "Run":  # fmt: skip
    """The run that takes the steps of these trainings together, before its first step."""
    config, train, data = trainings[0]
    batch, precision = min(train.batch_size, len(data.items)), settle_precision(train.precision, backbone.device)
    share = workers.largest_share(batch)
    refuse_too_large(backbone, config, share, len(data.class_names) // workers.size, precision, len(trainings))
    adapters = [new_adapter(training.adapter, backbone, training.train.seed) for training in trainings]
    if len(trainings) == 1:
        model = AdaptedCLIP(backbone, adapters[0], data.class_names, data.template, precision, workers)
    else:
        class_names = [training.data.class_names for training in trainings]
        model = StackedCLIP(backbone, adapters, class_names, data.template, precision)
    trains = [training.train for training in trainings]
    optimizers = [new_optimizer(adapter, own.lr) for adapter, own in zip(adapters, trains, strict=True)]
    step = TrainingStep(model, optimizers, precision, workers.fraction(batch))
    features = FrozenFeatures(model.image_tower, workers.largest_share(train.batch_size), store)
    views = TrainingViews([(training.data, training.train) for training in trainings], features, workers)
    return Run(step, views, trains, checkpoints)


def check_division(workers: int, batch_size: int, n_items: int, n_classes: int) -> None:
    """Raises UserError for more workers than a batch has images, or than there are classes."""
    for what, count in (("images a batch", min(batch_size, n_items)), ("classes", n_classes)):
        if workers > count:
            raise UserError(f"{workers} workers cannot share {count} {what}; lower cluster.workers")


class Run:
    """One training under way, or several that take their steps together: how far, and what a checkpoint holds."""

    def __init__(
        self, step: TrainingStep, views: TrainingViews, trains: Sequence[TrainConfig], checkpoints: Checkpoints
    ):
        self.step, self.views, self.trains, self.workers = step, views, trains, step.workers
        # of the first worker alone: two lists of what is kept might differ
        self.checkpoints = NoCheckpoints() if self.workers.rank else checkpoints
        self.validations: list[Validation | None] = [None] * len(trains)
        self.histories: list[list[dict[str, float]]] = [[] for _ in trains]  # of whole epochs
        self.rows = torch.empty(0, len(trains), len(TERMS))  # of the present epoch's steps, of all workers together

    def validate(self, vals: Sequence[ImageSet | None]) -> None:
        """Classify each training's own images, where it has some, after every epoch."""
        model = self.step.model
        for place, (adapter, val) in enumerate(zip(model.adapters, vals, strict=True)):
            if val and val.items:
                if len(vals) > 1:  # each epoch it is one pass over few images: the stack is for the steps
                    own = AdaptedCLIP(model.backbone, adapter, val.class_names, val.template, self.step.precision)
                self.validations[place] = Validation(own if len(vals) > 1 else model, val)

    def train(self, reports: Sequence[EpochCallback]) -> list[Fitted]:
        """Train from the newest checkpoint to the last epoch; each training has a report of its metrics."""
        self._restore()
        for parameters in self.step.parameters:
            self.workers.broadcast(parameters)
        for epoch in range(self.trains[0].epochs):
            if epoch == len(self.histories[0]):  # else it lies behind the checkpoint
                self._epoch(epoch)
            for report, history in zip(reports, self.histories, strict=True):
                report(epoch, history[epoch])
        adapters = self.step.model.adapters
        return [
            Fitted(adapter, history, self.step.precision)
            for adapter, history in zip(adapters, self.histories, strict=True)
        ]

    def _epoch(self, epoch: int) -> None:
        rates = [lr_at(epoch, train) for train in self.trains]
        for optimizer, lr in zip(self.step.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr
        terms: list[Tensor] = []
        for frozen, labels in self.views.batches(epoch, start=len(self.rows)):
            if len(terms) == EVERY:
                self._add_steps(epoch, terms)
                self._save(epoch)
            terms.append(self.step(frozen, labels))
        for history, rows, lr in zip(self.histories, self._add_steps(epoch, terms), rates, strict=True):
            means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
            history.append({**means, "lr": lr})
        for history, validation in zip(self.histories, self.validations, strict=True):
            if validation:
                history[-1] |= validation()
        self.rows = self.rows[:0]
        self._save(epoch + 1)

    def _add_steps(self, epoch: int, terms: list[Tensor]) -> list[list[dict[str, float]]]:
        """Add steps to the epoch's rows, summed over the workers; a term that is not finite ends the training."""
        fresh = self.workers.sum(torch.stack(terms)).cpu().view(len(terms), *self.rows.shape[1:])
        self.rows = torch.cat([self.rows, fresh])
        terms.clear()
        return [self.step.check(epoch, rows, run) for run, rows in enumerate(self.rows.unbind(1))]

    def _save(self, epoch: int) -> None:
        if not isinstance(self.checkpoints, NoCheckpoints):
            self.checkpoints.save(pack(self._state()), epoch, len(self.rows))

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds, of each training in their order."""
        step = self.step
        return {"histories": self.histories, "rows": self.rows,
                "adapters": [adapter.state_dict() for adapter in step.model.adapters],
                "optimizers": [optimizer.state_dict() for optimizer in step.optimizers],
                "scalers": [scaler.state_dict() for scaler in step.scalers]}  # fmt: skip

    def _restore(self) -> None:
        device, keys = self.step.model.backbone.device, self._state()
        content = self.workers.broadcast_bytes(newest(self.checkpoints, keys), device)
        if not content:
            return
        state = unpack(content, device, keys)
        step = self.step
        for adapter, own in zip(step.model.adapters, state["adapters"], strict=True):
            adapter.load_state_dict(own)
        for optimizer, own in zip(step.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        for scaler, own in zip(step.scalers, state["scalers"], strict=True):
            scaler.load_state_dict(own)
        self.histories, self.rows = state["histories"], state["rows"].cpu()
