"""How a feature is read off an image tower's last layer, by the tower's own frozen modules.

B images, n frozen rows (class token if there is one, then patches), K slots of representation tokens, D the tower's
width, D' that of what is read. Slots are read the way patches are, so that both features lie in one space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmrl_core.clip.blocks import attend, split_heads

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClassToken:
    """The first row's; of slots the mean of each one's."""

    norm: Norm
    reads_first: ClassVar = True  # of the frozen rows the first alone

    def rows(self, x: Tensor) -> Tensor:
        """Frozen rows (B, n, D), or the first alone (B, 1, D) -> (B, D')."""
        return self.norm(x[:, 0])

    def slots(self, x: Tensor) -> Tensor:
        """(B, K, D) -> (B, D')."""
        return self.norm(x).mean(dim=1)


@dataclass(frozen=True)
class Mean:
    """The mean of the patches, and of the slots."""

    skip: int  # rows before the patches
    before: Norm  # of every row
    after: Norm  # of the mean
    reads_first: ClassVar = False

    def rows(self, x: Tensor) -> Tensor:
        return self.slots(x[:, self.skip :])

    def slots(self, x: Tensor) -> Tensor:
        return self.after(self.before(x).mean(dim=1))


@dataclass(frozen=True)
class Attention:
    """What a frozen query finds among the frozen rows, and among the slots."""

    before: Norm  # of every row
    pool: Callable[[Tensor], Tensor]  # (B, L, D) -> (B, D')
    after: Norm
    skip: int = 0  # rows that the query does not see
    reads_first: ClassVar = False

    def rows(self, x: Tensor) -> Tensor:
        return self.slots(x[:, self.skip :])

    def slots(self, x: Tensor) -> Tensor:
        return self.after(self.pool(self.before(x)))


Pool = ClassToken | Mean | Attention


class FirstQuery(nn.Module):
    """open_clip's AttentionalPooler for its first query alone, the one that CoCa's image feature is read from: queries
    do not see each other."""

    def __init__(self, pooler: nn.Module):
        super().__init__()
        self.pooler: Any = pooler

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, D')."""
        pooler, attn = self.pooler, self.pooler.attn
        if attn.in_proj_weight is None:  # keys are of another width than queries
            weights = attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight
        else:
            weights = attn.in_proj_weight.chunk(3)
        seen = pooler.ln_k(x)
        inputs = (pooler.ln_q(pooler.query[:1])[None], seen, seen)
        projected = map(F.linear, inputs, weights, attn.in_proj_bias.chunk(3))
        q, k, v = (split_heads(part, attn.num_heads) for part in projected)
        found = attend(q.expand(k.shape[0], -1, -1, -1), k, v)
        return attn.out_proj(found)[:, 0]
