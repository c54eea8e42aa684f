"""Classifiers of frozen image features that an adapter may hold: a linear probe, and Tip-Adapter's cache of images.

B images, C trained classes, E embedding width, M cached images. Features are L2-normalised.
"""

import torch
from torch import Tensor, nn

from mmrl_core.method.adapter_card import HeadCard
from mmrl_core.method.places import places
from mmrl_core.method.shapes import head_shapes


class LinearProbe(nn.Module):
    """Logistic regression on frozen features."""

    weight: Tensor  # (C, E)
    bias: Tensor  # (C,)

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, E) -> log-probabilities but for a constant (B, C)."""
        return features @ self.weight.T + self.bias


class ImageCache(nn.Module):
    """Tip-Adapter's cache (Zhang et al., 2022): every labelled image votes for its class, near ones more.

    The rows of `keys` are those of the first class, then of the second, and so on, `rows` of each.
    """

    keys: Tensor  # (M, E)
    values: Tensor  # (M, C), one-hot

    def __init__(self, keys: Tensor, rows: list[int], sharpness: float):
        super().__init__()
        self.sharpness = sharpness
        self.register_buffer("keys", keys)
        labels = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
        self.register_buffer("values", nn.functional.one_hot(labels, len(rows)).float(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, E) -> exp(-sharpness (1 - cosine)), summed over each class's images (B, C)."""
        return torch.exp(self.sharpness * (features @ self.keys.T - 1)) @ self.values


Head = LinearProbe | ImageCache


def empty_head(card: HeadCard, n_classes: int, embed_dim: int) -> Head:
    """A head of this card, whose tensors are still to be filled."""
    first, *rest = (torch.zeros(shape) for shape in head_shapes(card, n_classes, embed_dim).values())
    return LinearProbe(first, *rest) if card["kind"] == "linear" else ImageCache(first, card["rows"], card["sharpness"])


def columns_of(class_names: list[str], trained_names: list[str]) -> Tensor:
    """(C,): `places` as a tensor."""
    return torch.tensor(places(class_names, trained_names), dtype=torch.long)
