"""The shared representation space R and the aligners that map it into both towers' layers.

K tokens, d_r width of the space, n insertion layers, D a tower's width, r and q the low ranks of MMRL++. Every map takes
tensors with further dimensions before these: several adapters that are stacked go through it at once.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Map(nn.Module):
    """A map whose learnable tensors may also come from outside, as of several adapters that are stacked."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.map(*inputs, **dict(self.named_parameters()))

    @staticmethod
    def map(*inputs: Tensor, **parameters: Tensor) -> Tensor:
        """The result for parameters of these names."""
        raise NotImplementedError


def stacked(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The tensors of R modules of one kind, each as one (R, ...); gradients go to each module's own."""
    columns = zip(*(module.named_parameters() for module in modules), strict=True)
    return {column[0][0]: torch.stack([tensor for _, tensor in column]) for column in columns}


def default_linear(out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) as torch's Linear initialises them."""
    linear = nn.Linear(in_features, out_features)
    return linear.weight.detach(), linear.bias.detach()


def kaiming(rows: int, columns: int) -> Tensor:
    """(rows, columns) drawn by kaiming_uniform(a = sqrt 5)."""
    return nn.init.kaiming_uniform_(torch.empty(rows, columns), a=math.sqrt(5))


class LinearAligner(Map):
    """MMRL: a linear map of its own for every insertion layer, all starting as copies of one."""

    def __init__(self, n_layers: int, width: int, rep_dim: int):
        super().__init__()
        weight, bias = default_linear(width, rep_dim)
        self.weight = nn.Parameter(weight.repeat(n_layers, 1, 1))  # (n, D, d_r)
        self.bias = nn.Parameter(bias.repeat(n_layers, 1))  # (n, D)

    @staticmethod
    def map(space: Tensor, *, weight: Tensor, bias: Tensor) -> Tensor:
        """R (K, d_r) -> tokens of every insertion layer (n, K, D)."""
        return torch.einsum("...kr,...ndr->...nkd", space, weight) + bias[..., None, :]


class SharedResidualAligner(Map):
    """MMRL++'s SRRA: one shared map, and per layer a rank-r residual A_i B_i and a bias."""

    def __init__(self, n_layers: int, width: int, rep_dim: int, rank: int):
        super().__init__()
        weight, bias = default_linear(width, rep_dim)
        self.weight = nn.Parameter(weight)  # W (D, d_r)
        self.bias = nn.Parameter(bias.repeat(n_layers, 1))  # b (n, D)
        self.A = nn.Parameter(torch.stack([kaiming(width, rank) for _ in range(n_layers)]))  # (n, D, r)
        self.B = nn.Parameter(torch.zeros(n_layers, rank, rep_dim))  # (n, r, d_r)

    @staticmethod
    def map(space: Tensor, *, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """R (K, d_r) -> R (W + A_i B_i)^T + b_i for every insertion layer (n, K, D)."""
        shared, residual = space @ weight.mT, (space.unsqueeze(-3) @ B.mT) @ A.mT
        return shared.unsqueeze(-3) + residual + bias[..., None, :]


class FreeProjection(Map):
    """MMRL: P_r is a matrix of its own (D x E), started like CLIP's projection."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    @staticmethod
    def map(features: Tensor, frozen: Tensor, *, weight: Tensor) -> Tensor:
        """(B, D) -> (B, E); the frozen projection plays no part."""
        return features @ weight


class ResidualProjection(Map):
    """MMRL++: P_r is CLIP's frozen projection plus a rank-q residual A B."""

    def __init__(self, width: int, embed_dim: int, rank: int):
        super().__init__()
        self.A = nn.Parameter(kaiming(width, rank))
        self.B = nn.Parameter(torch.zeros(rank, embed_dim))

    @staticmethod
    def map(features: Tensor, frozen: Tensor, *, A: Tensor, B: Tensor) -> Tensor:
        """(B, D), frozen projection (D, E) -> (B, E)."""
        return features @ frozen + (features @ A) @ B
