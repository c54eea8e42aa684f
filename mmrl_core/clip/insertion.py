"""Where representation tokens stand among a tower's rows, and how they go through its layers: index work, no parameter.

B sequences, n rows of the frozen tower, K representation tokens, D width, R runs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl_core.clip.blocks import Block, project, run


def insert(x: Tensor, tokens: Tensor, start: int) -> Tensor:
    """Put tokens (K, D), or each sequence's own (B, K, D), before slot `start`: (B, L, D) -> (B, L + K, D)."""
    return torch.cat([x[:, :start], tokens.expand(x.shape[0], -1, -1), x[:, start:]], dim=1)


def compose(x: Tensor, tokens: Tensor, beta: float, start: int) -> Tensor:
    """Renew the K slots from `start` on with beta * tokens + (1 - beta) * what the layer below left there.

    beta = 1 is MMRL's replacement; beta < 1 is MMRL++'s progressive representation composition.
    """
    length, stop = x.shape[1], start + tokens.shape[-2]
    keep = torch.ones(length, 1, device=x.device)
    keep[start:stop] = 1 - beta
    return torch.addcmul(F.pad(beta * tokens, (0, 0, start, length - stop)), x, keep)


def spread(tokens: Tensor, count: int) -> Tensor:
    """Tokens of R runs (R, K, D) for `count` sequences of each, one run after another: (R * count, K, D).

    Those of one run (K, D) stay as they are: every sequence has the same.
    """
    return tokens if tokens.dim() == 2 or count == 1 else tokens.repeat_interleave(count, dim=0)


def layers_of(tokens: Tensor, first: Block) -> list[Tensor]:
    """Every layer's tokens (..., K, D) of (..., n_insert, K, D), then what `project` of the first layer that carries
    any gives for its own (..., K, 3 A): tokens have no rotary position."""
    layers = list(tokens.unbind(-3))
    return [*layers, project(first._replace(rope=None), layers[0])]


def carry(upper: list[Block], trunk: Tensor, layers: list[Tensor], beta: float, sees: Tensor | None = None) -> Tensor:
    """Input of the last of the layers that carry tokens, the tokens behind the rows: (B, n, D) -> (B, n + K, D).

    Attention has no order, so the tokens stand where they are cheap to renew. `layers` are `layers_of` the tokens;
    `sees` (B or 1, H or 1, n + K, n + K) is what sees what, as `attend` takes it.
    """
    *tokens, entry = layers
    n = trunk.shape[1]
    x = insert(trunk, tokens[0], n)
    for index, (block, following) in enumerate(zip(upper[:-1], tokens[1:], strict=True)):
        packed = project(block, x) if index else insert(_constant(block, trunk), entry, n)
        if beta == 1:  # what the layer leaves in the slots is dropped: do not compute it
            x = insert(run(block, x, packed, first=n, mask=sees), following, n)
        else:
            x = compose(run(block, x, packed, mask=sees), following, beta, n)
    return x


@torch.no_grad()
def _constant(block: Block, trunk: Tensor) -> Tensor:
    """`project` of the first token-carrying layer for all but its tokens."""
    return project(block, trunk)
