"""fit(): the one training loop, whoever launches it.

A run depends on its settings and data alone: order and views are functions of (seed, epoch, item), nothing draws from
a generator that goes on between epochs. So a run that is resumed from a checkpoint ends where an unbroken one does.
"""

import io
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmrl_core.adapter import Adapter
from mmrl_core.backbone import Backbone
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import train_views, view_seed
from mmrl_core.errors import UserError
from mmrl_core.files import write_bytes
from mmrl_core.losses import LossTerms, mmrl_loss
from mmrl_core.model import AdaptedCLIP

BETAS, WEIGHT_DECAY = (0.9, 0.999), 5e-4
WARMUP_LR = 1e-5
CHECKPOINT = "checkpoint.pt"
SMALL = 12 * 384**2  # layers x width^2: a ViT-S

Report = Callable[[int, dict[str, float]], None]


class Fitted(NamedTuple):
    """The trained adapter, and every epoch's metrics (means over its steps), those before a resume included."""

    adapter: Adapter
    history: list[dict[str, float]]


def settle_threads(backbone: Backbone) -> None:
    """Give a small backbone one CPU thread: more are no faster, and sums in another order would give other bits."""
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
) -> Fitted:
    """Train an adapter; the last epoch's weights are the result.

    `report(epoch, metrics)` is called for every epoch, counted from 0. With `checkpoints`, a folder, the state is kept
    there after every epoch and a later call with the same folder goes on from it, reporting the epochs behind it
    first. Raises UserError when the loss stops being finite.
    """
    if not data.items:
        raise UserError("there is no training image; prepare at least one shot of one class")
    adapter = new_adapter(config, backbone, train.seed)
    model = AdaptedCLIP(backbone, adapter, data.class_names, data.template)
    optimizer = new_optimizer(adapter, train.lr)
    history = _restore(checkpoints, adapter, optimizer)
    report = report or (lambda epoch, metrics: None)
    for epoch, metrics in enumerate(history):
        report(epoch, metrics)
    for epoch in range(len(history), train.epochs):
        history.append(_run_epoch(model, optimizer, train, data, epoch))
        _keep(checkpoints, adapter, optimizer, history)
        report(epoch, history[-1])
    return Fitted(adapter, history)


def _run_epoch(model: AdaptedCLIP, optimizer, train: TrainConfig, data: ImageSet, epoch: int) -> dict[str, float]:
    lr = lr_at(epoch, train)
    for group in optimizer.param_groups:
        group["lr"] = lr
    steps = [
        _step(model, optimizer, *_load(model.backbone, train, data, epoch, indices), where=f"epoch {epoch} step {step}")
        for step, indices in enumerate(batches(len(data.items), train, epoch))
    ]
    means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    return {**means, "lr": lr}


def _load(backbone: Backbone, train: TrainConfig, data: ImageSet, epoch: int, indices: list[int]):
    """Views (B, 3, S, S) and labels (B,) of one batch, on the backbone's device."""
    images, items = [data.images[i] for i in indices], [data.items[i] for i in indices]
    views = train_views(images, backbone.image_size, train.seed, epoch, items, backbone.mean, backbone.std)
    labels = torch.tensor([data.labels[i] for i in indices])
    return views.to(backbone.device), labels.to(backbone.device)


def _step(model: AdaptedCLIP, optimizer, images: Tensor, labels: Tensor, *, where: str) -> dict[str, float]:
    config = model.adapter.config
    trunk = model.image_tower.trunk(images)
    out = model.from_trunk(trunk)
    terms = mmrl_loss(
        out, labels, model.image_tower.zero_shot(trunk), model.zero_shot_text,
        alpha=config.alpha, reg_weight=config.reg_weight,
    )  # fmt: skip
    optimizer.zero_grad(set_to_none=True)
    terms.total.backward()
    optimizer.step()
    metrics = _as_floats(terms, where)
    return {**metrics, "train_accuracy": (out.logits_fused.argmax(-1) == labels).float().mean().item()}


def _as_floats(terms: LossTerms, where: str) -> dict[str, float]:
    values = {name: term.item() for name, term in terms._asdict().items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise UserError(f"training diverged at {where}: {broken[0]} is {values[broken[0]]}; lower train.lr")
    return {"loss": sum(values.values()), **values}


def _keep(folder: str | Path | None, adapter: Adapter, optimizer, history: list[dict[str, float]]) -> None:
    if folder is None:
        return
    buffer = io.BytesIO()
    torch.save({"history": history, "adapter": adapter.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    write_bytes(Path(folder) / CHECKPOINT, buffer.getvalue())


def _restore(folder: str | Path | None, adapter: Adapter, optimizer) -> list[dict[str, float]]:
    """Load a checkpoint if there is a whole one; returns the metrics of the epochs it has behind it."""
    path = Path(folder or "") / CHECKPOINT
    if folder is None or not path.exists():
        return []
    try:
        state = torch.load(path, map_location=adapter.space.device, weights_only=True)
        weights, moments, history = state["adapter"], state["optimizer"], state["history"]
    except Exception as error:  # whatever damage makes of it, training from the start is right
        logging.getLogger(__name__).warning("%s is damaged (%s): starting over", path, type(error).__name__)
        return []
    adapter.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    return history
