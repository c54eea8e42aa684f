"""The shared representation space R and the aligners that map it into both towers' layers.

K tokens, d_r width of the space, n insertion layers, D a tower's width, D' that of what is read
off the image tower, E embedding width, r and q the low ranks of MMRL++.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl_core.clip.families.images import Projection


def default_linear(out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) as torch's Linear initialises them."""
    linear = nn.Linear(in_features, out_features)
    return linear.weight.detach(), linear.bias.detach()


def kaiming(rows: int, columns: int) -> Tensor:
    """(rows, columns) drawn by kaiming_uniform(a = sqrt 5)."""
    return nn.init.kaiming_uniform_(torch.empty(rows, columns), a=math.sqrt(5))


class LinearAligner(nn.Module):
    """MMRL: a linear map of its own for every insertion layer, all starting as copies of one."""

    def __init__(self, n_layers: int, width: int, rep_dim: int):
        super().__init__()
        weight, bias = default_linear(width, rep_dim)
        self.weight = nn.Parameter(weight.repeat(n_layers, 1, 1))  # (n, D, d_r)
        self.bias = nn.Parameter(bias.repeat(n_layers, 1))  # (n, D)

    def forward(self, space: Tensor) -> Tensor:
        """R (K, d_r) -> tokens of every insertion layer (n, K, D)."""
        tokens = F.linear(space, self.weight.flatten(0, 1))  # one product for all layers, (K, n D)
        return tokens.unflatten(1, self.bias.shape).transpose(0, 1) + self.bias[:, None]


class SharedResidualAligner(nn.Module):
    """MMRL++'s SRRA: one shared map, and per layer a rank-r residual A_i B_i and a bias."""

    def __init__(self, n_layers: int, width: int, rep_dim: int, rank: int):
        super().__init__()
        weight, bias = default_linear(width, rep_dim)
        self.weight = nn.Parameter(weight)  # W (D, d_r)
        self.bias = nn.Parameter(bias.repeat(n_layers, 1))  # b (n, D)
        self.A = nn.Parameter(torch.stack([kaiming(width, rank) for _ in range(n_layers)]))  # (n, D, r)
        self.B = nn.Parameter(torch.zeros(n_layers, rank, rep_dim))  # (n, r, d_r)

    def forward(self, space: Tensor) -> Tensor:
        """R (K, d_r) -> R (W + A_i B_i)^T + b_i for every insertion layer (n, K, D)."""
        residual = (space @ self.B.transpose(1, 2)) @ self.A.transpose(1, 2)
        return space @ self.weight.T + residual + self.bias[:, None]


class FreeProjection(nn.Module):
    """MMRL: P_r is a matrix of its own (D' x E), started like CLIP's projection."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    def forward(self, features: Tensor, frozen: Projection) -> Tensor:
        """(B, D') -> (B, E); the frozen projection plays no part."""
        return features @ self.weight

    def folded(self, frozen: Projection) -> Projection:
        """The same, of constants."""
        return Projection(self.weight.detach(), None)


class ResidualProjection(nn.Module):
    """MMRL++: P_r is CLIP's frozen projection plus a rank-q residual A B."""

    def __init__(self, width: int, embed_dim: int, rank: int):
        super().__init__()
        self.A = nn.Parameter(kaiming(width, rank))
        self.B = nn.Parameter(torch.zeros(rank, embed_dim))

    def forward(self, features: Tensor, frozen: Projection) -> Tensor:
        """(B, D'), frozen projection -> (B, E)."""
        return frozen(features) + (features @ self.A) @ self.B

    def folded(self, frozen: Projection) -> Projection:
        """The same as one matrix, of constants."""
        return Projection((frozen.weight + self.A @ self.B).detach(), frozen.bias)
