"""What is measured: class names, inputs, and one training step of the oracle's and of the product's.

B images, C classes. Both steps see the same images and labels, train an adapter of the same configuration and update it
by the same fused AdamW. Frozen features that a step is given are random: their values change nothing in its cost.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.towers import Frozen
from mmrl_core.config import AdapterConfig
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.fit import new_adapter, new_optimizer
from mmrl_core.training.step import TrainingStep
from tests.oracle import Oracle

TEMPLATE, LR = "a photo of a {}.", 1e-4
FIRST = ["red", "small", "old", "wooden", "striped", "quiet", "round", "bright", "wild", "plain"]
NOUNS = ["dog", "car", "cup", "tree", "bird"]
THIRD = [
    "house", "harness", "collar", "handle", "shelter", "keeper", "painting", "saucer", "feeder", "trunk",
    "blanket", "cover", "statue", "stand", "whistle", "basket", "wheel", "mosaic", "lantern", "embroidery",
]  # fmt: skip

Step = Callable[[], object]


def class_names(count: int) -> list[str]:
    """Up to 1000 distinct names of one, two and three words, every length in as short a list as ten."""
    ones = NOUNS[: count // 10]
    twos = [f"{first} {noun}" for noun, first in product(NOUNS, FIRST)][: (count - len(ones)) * 6 // 10]
    threes = [f"{first} {noun} {third}" for third, first, noun in product(THIRD, FIRST, NOUNS)]
    names = ones + twos + threes[: count - len(ones) - len(twos)]
    if len(names) < count:
        raise ValueError(f"there are only {len(names)} class names, not {count}")
    return names


class Plan(NamedTuple):
    """What to measure: a backbone and the lists that the tables' cells come from."""

    backbone: Backbone
    methods: list[str]
    classes: list[int]
    batches: list[int]
    rounds: int = 3  # measurements, of which the median counts
    quick: bool = False


class Case(NamedTuple):
    """One cell of the table: a method, C classes and B images on a backbone."""

    backbone: Backbone
    method: str
    classes: int
    batch: int

    @property
    def config(self) -> AdapterConfig:
        """The published adapter, J = 6 of 12 layers, K = 5; on a shallower backbone J is half the depth as well."""
        return AdapterConfig(method=self.method, insertion_depth=self.backbone.depth // 2)

    def adapter(self) -> Adapter:
        """Freshly initialised, the same every time."""
        return new_adapter(self.config, self.backbone, seed=0)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Drawn images (B, 3, S, S) and labels (B,), on the backbone's device."""
        size, device = self.backbone.image_size, self.backbone.device
        images = torch.randn(self.batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        return images.to(device), (torch.arange(self.batch) % self.classes).to(device)


def oracle_of(case: Case, adapter: Adapter) -> Oracle:
    oracle = Oracle(case.backbone.clip, case.backbone.tokenizer, adapter, class_names(case.classes), TEMPLATE)
    oracle.token_ids = oracle.token_ids.to(case.backbone.device)
    return oracle


def model_of(case: Case, adapter: Adapter, precision: str) -> AdaptedCLIP:
    return AdaptedCLIP(case.backbone, adapter, class_names(case.classes), TEMPLATE, precision)


def oracle_step(case: Case) -> Step:
    """The published code's step: two whole image passes, 77-token prompts, backward, update."""
    adapter, (images, labels) = case.adapter(), case.inputs()
    oracle, optimizer = oracle_of(case, adapter), primed(adapter)
    zero_shot_text = F.normalize(torch.randn(case.classes, case.backbone.embed_dim), dim=-1).to(case.backbone.device)

    def step() -> None:
        optimizer.zero_grad()
        oracle.loss(images, labels, zero_shot_text).backward()
        optimizer.step()

    return step


def model_step(model: AdaptedCLIP, case: Case, precision: str, cached: bool) -> Step:
    """The product's step; `cached`: frozen features are given, as a feature store gives them."""
    images, labels = case.inputs()
    step, tower = TrainingStep(model, [primed(model.adapter)], precision), model.image_tower
    if not cached:
        return lambda: step(tower.frozen(images), labels)
    frozen = drawn_features(case, tower.dtype)
    return lambda: step(frozen, labels)


def drawn_features(case: Case, dtype: torch.dtype) -> Frozen:
    """Random frozen features of the case's shapes, on the backbone's device."""
    backbone = case.backbone
    trunk = torch.randn(case.batch, backbone.image_tokens, backbone.image_width).to(dtype)
    return Frozen(trunk, F.normalize(torch.randn(case.batch, backbone.embed_dim), dim=-1)).to(backbone.device)


def primed(adapter: Adapter) -> torch.optim.Optimizer:
    """An optimiser that has its moments already, so that no measured step allocates them."""
    optimizer = new_optimizer(adapter, LR)
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer
