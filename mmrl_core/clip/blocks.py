"""Frozen transformer blocks as plain tensors, taken apart so that only what is read is computed.

B batch, L tokens, D width, H heads, d = D / H. `freeze` reads an open_clip `ResidualAttentionBlock` once; what is left
of it is tensors without gradient. Matrix products and attention run in the tensors' type, the residual stream and the
layer norms in float32, as autocast does it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmrl_core.clip.openclip import ResidualAttentionBlock

QUICK_GELU = 1.702


class Norm(NamedTuple):
    weight: Tensor  # (D,)
    bias: Tensor  # (D,)
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Linear(NamedTuple):
    """weight_scale * x W^T + bias_scale * b; the scales ride along in the matrix product."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)
    weight_scale: float = 1.0
    bias_scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias, alpha, beta = self
        x = x.to(weight.dtype)
        if alpha == 1:
            return F.linear(x, weight, bias)
        return torch.addmm(bias, x.flatten(0, -2), weight.T, alpha=alpha, beta=beta).view(*x.shape[:-1], -1)

    def rows(self, first: int, last: int) -> "Linear":
        """The layer that gives outputs first..last alone."""
        return self._replace(weight=self.weight[first:last], bias=self.bias[first:last])


class Block(NamedTuple):
    """x -> x + out(attention(qkv(ln_1 x))), then x -> x + proj(activation(fc(ln_2 x)))."""

    heads: int
    ln_1: Norm
    qkv: Linear  # (3 D, D): query, key, value
    out: Linear
    ln_2: Norm
    fc: Linear
    activation: Callable[[Tensor], Tensor]
    proj: Linear


def freeze(block: "ResidualAttentionBlock", dtype: torch.dtype) -> Block:
    """A block's weights in `dtype`: in their own type they are shared with it, not copied.

    QuickGELU x sigmoid(1.702 x) is silu(1.702 x) / 1.702: in low precision the factors ride in the linear layers around
    it, and it is one fused kernel instead of three. In float32 that would double the rounding noise of the features.
    """
    attn, (fc, activation, proj) = block.attn, block.mlp
    quick = type(activation).__name__ == "QuickGELU" and dtype != torch.float32
    scale = QUICK_GELU if quick else 1.0
    return Block(
        heads=attn.num_heads,
        ln_1=_norm(block.ln_1),
        qkv=Linear(attn.in_proj_weight.detach().to(dtype), attn.in_proj_bias.detach().to(dtype)),
        out=_linear(attn.out_proj, dtype, layer_scale=block.ls_1),
        ln_2=_norm(block.ln_2),
        fc=_linear(fc, dtype)._replace(weight_scale=scale, bias_scale=scale),
        activation=F.silu if quick else activation,
        proj=_linear(proj, dtype, layer_scale=block.ls_2)._replace(weight_scale=1 / scale),
    )


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight.detach(), norm.bias.detach(), norm.eps)


def _linear(layer: nn.Linear, dtype: torch.dtype, layer_scale: nn.Module | None = None) -> Linear:
    """With open_clip's LayerScale, where a block has one, multiplied in."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if layer_scale is not None and not isinstance(layer_scale, nn.Identity):
        gamma = layer_scale.get_parameter("gamma").detach()
        weight, bias = gamma[:, None] * weight, gamma * bias
    return Linear(weight.to(dtype), bias.to(dtype))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, H, L, d), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def project(block: Block, x: Tensor) -> Tensor:
    """Query, key and value of every token, packed: (B, L, D) -> (B, L, 3 D)."""
    return block.qkv(block.ln_1(x))


def queries(block: Block, x: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, D)."""
    return block.qkv.rows(0, x.shape[-1])(block.ln_1(x))


def keys_values(block: Block, x: Tensor) -> Tensor:
    """Key and value, packed: (B, L, D) -> (B, L, 2 D)."""
    width = x.shape[-1]
    return block.qkv.rows(width, 3 * width)(block.ln_1(x))


def unpack(packed: Tensor, parts: int, heads: int) -> list[Tensor]:
    """(B, L, parts * D) -> that many (B, H, L, d), views."""
    return [split_heads(part, heads) for part in packed.chunk(parts, dim=-1)]


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """scaled_dot_product_attention of q (B, H, Q, d) with the heads put together: (B, Q, D).

    Where a gradient is wanted of low-precision inputs on a CPU it runs in float32: torch's backward kernel for
    bfloat16 takes half as long again there.
    """
    if q.device.type == "cpu" and q.dtype != torch.float32 and torch.is_grad_enabled():
        q, k, v = q.float(), k.float(), v.float()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)


def finish(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of the block for tokens x (B, L, D) whose attention output is attended (B, L, D)."""
    x = _add(x, block.out(attended))
    return _add(x, block.proj(block.activation(block.fc(block.ln_2(x)))))


def _add(x: Tensor, update: Tensor) -> Tensor:
    """x + update, in the update's memory, which nothing else reads; in new memory where the types differ."""
    return update.add_(x) if update.dtype == x.dtype else x + update


def run(block: Block, x: Tensor, packed: Tensor | None = None, first: int | None = None) -> Tensor:
    """The block without a mask, for the first tokens or all: (B, L, D) -> (B, first or L, D).

    `packed` is what `project` gives for x, where the caller has it.
    """
    q, k, v = unpack(project(block, x) if packed is None else packed, 3, block.heads)
    return finish(block, x[:, :first], attend(q[:, :, :first], k, v))


def read(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """The block's output for `tokens` (B, n, D), some of x, which attend to all of x: (B, n, D)."""
    q = split_heads(queries(block, tokens), block.heads)
    return finish(block, tokens, attend(q, *unpack(keys_values(block, x), 2, block.heads)))
