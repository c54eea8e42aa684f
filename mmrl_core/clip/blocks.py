"""Frozen transformer blocks as plain tensors, taken apart so that only what is read is computed.

B batch, L tokens, D width of the stream, A width of the attention, H heads, d = A / H. `families/` reads the blocks of
open_clip, timm and transformers once; what is left of them is tensors without gradient. Matrix products and attention
run in the tensors' type, the residual stream and the norms in float32, as autocast does it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Norm(NamedTuple):
    """A layer norm, or with `rms` one that leaves the mean as it is."""

    weight: Tensor  # (D,)
    bias: Tensor | None  # (D,)
    eps: float
    rms: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.rms:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Linear(NamedTuple):
    """weight_scale * x W^T + bias_scale * b; the scales ride along in the matrix product."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    weight_scale: float = 1.0
    bias_scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias, alpha, beta = self
        x = x.to(weight.dtype)
        if alpha == 1:
            return F.linear(x, weight, bias)
        assert bias is not None
        return torch.addmm(bias, x.flatten(0, -2), weight.T, alpha=alpha, beta=beta).view(*x.shape[:-1], -1)

    def rows(self, first: int, last: int) -> "Linear":
        """The layer that gives outputs first..last alone."""
        bias = None if self.bias is None else self.bias[first:last]
        return self._replace(weight=self.weight[first:last], bias=bias)


class Mlp(NamedTuple):
    """proj(norm(activation(fc(before x)))); `gated`: the first half of fc's, activated, times the second half."""

    fc: Linear
    activation: Callable[[Tensor], Tensor]
    proj: Linear
    gated: bool = False
    norm: Norm | None = None
    before: Norm | None = None

    def __call__(self, x: Tensor) -> Tensor:
        x = self.fc(x if self.before is None else self.before(x))
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            x = self.activation(gate) * value
        else:
            x = self.activation(x)
        return self.proj(x if self.norm is None else self.norm(x))


class Rope(NamedTuple):
    """Rotary positions of the first n tokens; those behind them are not turned, nor are rows where cos is 1."""

    cos: Tensor  # (n, 1, d)
    sin: Tensor  # (n, 1, d)
    half: bool  # turns the halves of a head against each other, otherwise its neighbours

    def __call__(self, x: Tensor) -> Tensor:
        """Queries or keys (..., L, H, d)."""
        n = min(len(self.cos), x.shape[-3])
        turned, rest = x[..., :n, :, :], x[..., n:, :, :]
        if self.half:
            first, second = turned.chunk(2, dim=-1)
            across = torch.cat([-second, first], dim=-1)
        else:
            across = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
        turned = (turned * self.cos[:n] + across * self.sin[:n]).to(x.dtype)
        return torch.cat([turned, rest], dim=-3) if rest.shape[-3] else turned


class Block(NamedTuple):
    """x -> x + out(inner(attention(qkv(ln_1 x)))), then x -> x + mlp(ln_2 x).

    Either branch may have a norm of its own before it is added (`branch_norms`), and the stream one after that
    (`sum_norms`); what a family does not have is None.
    """

    heads: int
    qkv: Linear  # (3 A, D): query, key, value
    out: Linear  # (D, A)
    mlp: Mlp
    ln_1: Norm | None = None
    ln_2: Norm | None = None
    rope: Rope | None = None
    inner: Norm | None = None
    branch_norms: tuple[Norm | None, Norm | None] = (None, None)
    sum_norms: tuple[Norm | None, Norm | None] = (None, None)

    @property
    def width(self) -> int:
        """A."""
        return self.qkv.weight.shape[0] // 3


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, A) -> (B, H, L, d), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _entering(block: Block, x: Tensor) -> Tensor:
    return x if block.ln_1 is None else block.ln_1(x)


def project(block: Block, x: Tensor) -> Tensor:
    """Query, key and value of every token, packed: (..., L, D) -> (..., L, 3 A)."""
    packed = block.qkv(_entering(block, x))
    return packed if block.rope is None else _turned(block, packed, 2)


def queries(block: Block, x: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, A), of tokens that have no rotary position."""
    return block.qkv.rows(0, block.width)(_entering(block, x))


def keys_values(block: Block, x: Tensor) -> Tensor:
    """Key and value, packed: (B, L, D) -> (B, L, 2 A)."""
    packed = block.qkv.rows(block.width, 3 * block.width)(_entering(block, x))
    return packed if block.rope is None else _turned(block, packed, 1)


def _turned(block: Block, packed: Tensor, parts: int) -> Tensor:
    """The first `parts` of what is packed, turned to their positions."""
    assert block.rope is not None
    size = parts * block.width
    turned = block.rope(packed[..., :size].unflatten(-1, (parts * block.heads, -1))).flatten(-2)
    return torch.cat([turned, packed[..., size:]], dim=-1)


def unpack(packed: Tensor, parts: int, heads: int) -> list[Tensor]:
    """(B, L, parts * A) -> that many (B, H, L, d), views."""
    return [split_heads(part, heads) for part in packed.chunk(parts, dim=-1)]


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """scaled_dot_product_attention of q (B, H, Q, d) with the heads put together: (B, Q, A).

    `mask` (B or 1, H or 1, Q, L) is true where a query sees a key, or is added to the scores. Where a gradient is
    wanted of low-precision inputs on a CPU it runs in float32: torch's backward kernel for bfloat16 takes half as long
    again there.
    """
    if q.device.type == "cpu" and q.dtype != torch.float32 and torch.is_grad_enabled():
        q, k, v = q.float(), k.float(), v.float()
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)


def finish(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of the block for tokens x (B, L, D) whose attention output is attended (B, L, A)."""
    x = _add(block, 0, x, block.out(attended if block.inner is None else block.inner(attended)))
    return _add(block, 1, x, block.mlp(x if block.ln_2 is None else block.ln_2(x)))


def _add(block: Block, branch: int, x: Tensor, update: Tensor) -> Tensor:
    """x + update, in the update's memory, which nothing else reads; in new memory where the types differ."""
    before, after = block.branch_norms[branch], block.sum_norms[branch]
    if before is not None:
        update = before(update)
    x = update.add_(x) if update.dtype == x.dtype else x + update
    return x if after is None else after(x)


def run(
    block: Block, x: Tensor, packed: Tensor | None = None, first: int | None = None, mask: Tensor | None = None
) -> Tensor:
    """The block for the first tokens or all: (B, L, D) -> (B, first or L, D).

    `packed` is what `project` gives for x, where the caller has it; `mask` (B or 1, H or 1, L, L) as for `attend`.
    """
    q, k, v = unpack(project(block, x) if packed is None else packed, 3, block.heads)
    seen = None if mask is None else mask[:, :, :first]
    return finish(block, x[:, :first], attend(q[:, :, :first], k, v, mask=seen))


def read(block: Block, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The block's output for `tokens` (B, n, D), some of x without a rotary position, which attend to all of x:
    (B, n, D). `mask` (B or 1, H or 1, n, L) as for `attend`."""
    q = split_heads(queries(block, tokens), block.heads)
    return finish(block, tokens, attend(q, *unpack(keys_values(block, x), 2, block.heads), mask=mask))
