"""Several adapters in one pass over the frozen towers: R runs, each with images and classes of its own.

The runs share the towers' shape: method, depth, tokens, ranks, beta and prompt template. Their losses' weights may
differ. R runs, B images of each, C classes of each, K tokens, D a tower's width, E embedding width.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.towers import ImageTower, TextTower
from mmrl_core.config import AdapterConfig
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.model import AdaptedCLIP

OWN = ("alpha", "reg_weight")  # what the adapters of a stack may differ in


def stackable(config: AdapterConfig) -> AdapterConfig:
    """Equal for adapters that go into one stack."""
    return config.model_copy(update=dict.fromkeys(OWN, 0))


class AdapterStack(nn.Module):
    """What R adapters compute, stacked. Their tensors stay their own: to stack those costs more than it saves."""

    def __init__(self, adapters: Sequence[Adapter]):
        super().__init__()
        self.adapters, self.config, self.n_insert = nn.ModuleList(adapters), adapters[0].config, adapters[0].n_insert
        weights = torch.tensor([[getattr(one.config, name) for one in adapters] for name in OWN])
        self.alpha, self.reg_weight = weights.to(adapters[0].space.device)  # (R,) each

    def check_fits(self, backbone: Backbone) -> None:
        """Raise UserError unless every adapter was made for such a backbone."""
        for adapter in self.adapters:
            adapter.check_fits(backbone)

    def image_tokens(self) -> Tensor:
        """(R, n_insert, K, d_v)."""
        return torch.stack([adapter.image_tokens() for adapter in self.adapters])

    def text_tokens(self) -> Tensor:
        """(R, n_insert, K, d_t)."""
        return torch.stack([adapter.text_tokens() for adapter in self.adapters])

    def projection(self, features: Tensor, frozen: Tensor) -> Tensor:
        """(R, B, d_v), frozen projection (d_v, E) -> (R, B, E)."""
        pairs = zip(self.adapters, features, strict=True)
        return torch.stack([adapter.projection(own, frozen) for adapter, own in pairs])

    def fused(self, by_class: Tensor, by_rep: Tensor) -> Tensor:
        """Logits of both branches (R, B, C), weighted by each run's alpha."""
        alpha = self.alpha[:, None, None]
        return alpha * by_class + (1 - alpha) * by_rep


class StackedCLIP(AdaptedCLIP):
    """The frozen CLIP with the adapters of a stack, each for its own list of equally many classes.

    Trunks (R, B, 1 + P, D) give logits (R, B, C); `zero_shot_text` is (R, C, E).
    """

    adapter: AdapterStack

    def __init__(
        self, backbone: Backbone, adapters: Sequence[Adapter], class_names: Sequence[list[str]], template: str,
        precision: str = "float32",
    ):  # fmt: skip
        self.class_lists = class_names
        super().__init__(backbone, AdapterStack(adapters), list(chain.from_iterable(class_names)), template, precision)

    def _build_towers(self) -> None:
        n_insert, runs = self.adapter.n_insert, len(self.class_lists)
        self.image_tower = ImageTower(self.backbone, n_insert, self.dtype)
        self.text_tower = TextTower(self.backbone, self.class_names, self.template, n_insert, self.dtype, runs=runs)
        self.register_buffer("zero_shot_text", self._of_runs(self.text_tower.zero_shot()), persistent=False)

    def _of_runs(self, features: Tensor) -> Tensor:
        """(R C, E) -> (R, C, E)."""
        return features.unflatten(0, (len(self.class_lists), -1))

    @property
    def adapters(self) -> list[Adapter]:
        return list(self.adapter.adapters)

    def text_features(self) -> Tensor:
        """Adapted class features (R, C, E)."""
        return self._of_runs(self.text_tower.adapted(self.adapter.text_tokens(), self.adapter.config.composition))
