"""The adapters of R runs as one. K tokens, d_v and d_t the towers' widths, B images, C classes, D' width of
what is read off the image tower, E embedding width."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.families.images import Projection
from mmrl_core.config import AdapterConfig
from mmrl_core.method.adapter import Adapter

OWN = ("alpha", "reg_weight")  # what the adapters of a stack may differ in


def stackable(config: AdapterConfig) -> AdapterConfig:
    """Equal for adapters that go into one stack."""
    return config.model_copy(update=dict.fromkeys(OWN, 0))


class AdapterStack(nn.Module):
    """What R adapters compute, stacked. Their tensors stay their own: to stack those costs more than it saves."""

    adapters: Sequence[Adapter]
    alpha: Tensor  # (R,)
    reg_weight: Tensor  # (R,)
    head = None  # adapters have one once they are trained

    def __init__(self, adapters: Sequence[Adapter]):
        super().__init__()
        self.adapters = cast(Sequence[Adapter], nn.ModuleList(adapters))  # torch does not say what such a list holds
        self.config, self.n_insert = adapters[0].config, adapters[0].n_insert
        weights = torch.tensor([[getattr(adapter.config, name) for adapter in adapters] for name in OWN])
        self.alpha, self.reg_weight = weights.to(adapters[0].space.device)

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

    def projection(self, features: Tensor, frozen: Projection) -> Tensor:
        """(R, B, D'), frozen projection -> (R, B, E)."""
        pairs = zip(self.adapters, features, strict=True)
        return torch.stack([adapter.projection(own, frozen) for adapter, own in pairs])

    def fused(self, by_class: Tensor, by_rep: Tensor) -> Tensor:
        """Logits of both branches (R, B, C), weighted by each run's alpha."""
        alpha = self.alpha[:, None, None]
        return alpha * by_class + (1 - alpha) * by_rep
