"""open_clip's residual attention block, taken apart so that queries can be computed for the read slots alone.

B batch, L tokens, D width, H heads, d = D / H. Nothing here has parameters: `block` is always a frozen
`open_clip.transformer.ResidualAttentionBlock`, whose own layers do the work.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, H, L, d), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def project(block: nn.Module, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
    """Rows first..last of the packed (query, key, value) projection of ln_1(x), each (B, H, L, d)."""
    width, attn = x.shape[-1], block.attn
    rows = slice(first * width, last * width)
    packed = F.linear(block.ln_1(x), attn.in_proj_weight[rows], attn.in_proj_bias[rows])
    return tuple(split_heads(part, attn.num_heads) for part in packed.chunk(last - first, dim=-1))


def queries_keys_values(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return project(block, x, 0, 3)


def queries(block: nn.Module, x: Tensor) -> Tensor:
    return project(block, x, 0, 1)[0]


def keys_values(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return project(block, x, 1, 3)


def finish(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of the block for tokens x (B, L, D) whose attention output is attended (B, H, L, d)."""
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def whole_block(block: nn.Module, x: Tensor, causal: bool = False) -> Tensor:
    """The block as open_clip runs it: (B, L, D) -> (B, L, D)."""
    return finish(block, x, F.scaled_dot_product_attention(*queries_keys_values(block, x), is_causal=causal))


def read_first(block: nn.Module, x: Tensor, n: int) -> Tensor:
    """The block's output for the first n tokens alone, which attend to all: (B, L, D) -> (B, n, D)."""
    read = x[:, :n]
    return finish(block, read, F.scaled_dot_product_attention(queries(block, read), *keys_values(block, x)))


def suffix_mask(prefix_length: int, suffix_length: int, device: torch.device) -> Tensor:
    """(S, Lp + S) booleans: a suffix token sees the whole prefix and the suffix up to itself."""
    seen = torch.ones(suffix_length, prefix_length + suffix_length, dtype=torch.bool, device=device)
    return seen.tril(diagonal=prefix_length)


def attend_after_prefix(q: Tensor, prefix_kv: tuple[Tensor, Tensor], suffix_kv: tuple[Tensor, Tensor], mask: Tensor):
    """Attention of q (C, H, Q, d) to a prefix (1, H, Lp, d) shared by all C sequences, then to their own suffixes.

    mask broadcasts to (C, H, Q, Lp + S).
    """
    n = q.shape[0]
    k, v = (
        torch.cat([shared.expand(n, -1, -1, -1), own], dim=2) for shared, own in zip(prefix_kv, suffix_kv, strict=True)
    )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
