"""open_clip's ResidualAttentionBlock, of either tower, as a `Block`."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from mmrl_core.clip.blocks import Block, Linear, Mlp, Norm
from mmrl_core.clip.openclip import ResidualAttentionBlock

QUICK_GELU = 1.702
OTHER_LAYERS = "its {tower} tower has {kind} layers"


def freeze(block: nn.Module, dtype: torch.dtype) -> Block:
    """A block's weights in `dtype`: in their own type they are shared with it, not copied.

    QuickGELU x sigmoid(1.702 x) is silu(1.702 x) / 1.702: in low precision the factors ride in the linear layers around
    it, and it is one fused kernel instead of three. In float32 that would double the rounding noise of the features.
    """
    assert isinstance(block, ResidualAttentionBlock)
    attn, (fc, activation, proj) = block.attn, block.mlp
    of_quick = type(activation).__name__ == "QuickGELU"
    quick = of_quick and dtype != torch.float32
    scale = QUICK_GELU if quick else 1.0
    return Block(
        heads=attn.num_heads,
        ln_1=norm(block.ln_1),
        qkv=Linear(attn.in_proj_weight.detach().to(dtype), attn.in_proj_bias.detach().to(dtype)),
        out=linear(attn.out_proj, dtype, _gamma(block.ls_1)),
        ln_2=norm(block.ln_2),
        mlp=Mlp(
            fc=linear(fc, dtype)._replace(weight_scale=scale, bias_scale=scale),
            activation=F.silu if quick else quick_gelu if of_quick else activation,
            proj=linear(proj, dtype, _gamma(block.ls_2))._replace(weight_scale=1 / scale),
        ),
    )


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x sigmoid(1.702 x). Where a gradient is wanted x alone is kept for it, as of GELU, not the sigmoid beside it."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(torch.Tensor, _QuickGelu.apply(x))
    return x * torch.sigmoid(QUICK_GELU * x)


class _QuickGelu(torch.autograd.Function):
    """The same bits as autograd's, in half of its memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(QUICK_GELU * x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        [x] = ctx.saved_tensors
        sigmoid = (QUICK_GELU * x).sigmoid_()
        inner = torch.ops.aten.sigmoid_backward(grad * x, sigmoid).mul_(QUICK_GELU)
        return (grad * sigmoid).add_(inner)


def of_other_kind(blocks: Iterable[nn.Module], tower: str) -> str | None:
    """What is wrong with layers of a tower that are not these blocks."""
    kinds = {type(block) for block in blocks} - {ResidualAttentionBlock}
    return OTHER_LAYERS.format(tower=tower, kind=kinds.pop().__name__) if kinds else None


def _gamma(layer_scale: nn.Module) -> torch.Tensor | None:
    return None if isinstance(layer_scale, nn.Identity) else layer_scale.get_parameter("gamma")


def norm(layer: nn.Module) -> Norm | None:
    """A layer norm of any library; None for an Identity."""
    if isinstance(layer, nn.Identity):
        return None
    assert isinstance(layer, nn.LayerNorm)
    bias = None if layer.bias is None else layer.bias.detach()
    return Norm(layer.weight.detach(), bias, layer.eps)


def linear(layer: nn.Linear, dtype: torch.dtype, gamma: torch.Tensor | None = None) -> Linear:
    """A linear layer in `dtype`, with a LayerScale behind it multiplied in."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if gamma is not None:
        gamma = gamma.detach()
        weight, bias = gamma[:, None] * weight, None if bias is None else gamma * bias
    return Linear(weight.to(dtype), None if bias is None else bias.to(dtype))


def joined(layers: Sequence[nn.Linear], dtype: torch.dtype) -> Linear:
    """Linear layers of one input side by side; one without a bias has zeros."""
    weight = torch.cat([layer.weight.detach() for layer in layers]).to(dtype)
    if all(layer.bias is None for layer in layers):
        return Linear(weight, None)
    parts: list[torch.Tensor] = [
        layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers
    ]
    return Linear(weight, torch.cat(parts).detach().to(dtype))
