"""timm's ViTs as open_clip builds them: SigLIP, MobileCLIP and ViTamin (VisionTransformer), EVA and
PE-Core (Eva).

Imported only where such a model is, since timm takes seconds.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from timm.layers import AttentionPoolLatent, AttentionRope, GluMlp, Mlp, SwiGLU
from timm.layers.attention import Attention as TimmAttention
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as VitBlock
from timm.models.vision_transformer import VisionTransformer
from timm.models.vitamin import GeGluMlp
from torch import Tensor, nn

from mmrl_core.clip import blocks
from mmrl_core.clip.blocks import Block, Linear, Rope
from mmrl_core.clip.families.images import PATCHES_DROPPED, UNREAD, ImageForm, Projection
from mmrl_core.clip.families.open_clip_blocks import OTHER_LAYERS, joined, linear, norm
from mmrl_core.clip.families.pooling import Attention, ClassToken, Mean, Pool

POOLS = ("token", "avg", "map")


def timm_problem(visual: nn.Module) -> str | None:
    """Why a TimmModel cannot be adapted."""
    trunk: Any = visual.trunk
    if type(trunk) not in (VisionTransformer, Eva):
        return f"its image tower is a {type(trunk).__name__} of timm, not a ViT"
    if trunk.global_pool not in POOLS:
        return UNREAD
    if _patches_are_dropped(trunk) or trunk.reg_token is not None or trunk.num_prefix_tokens > 1:
        return PATCHES_DROPPED if _patches_are_dropped(trunk) else "its image tower has register tokens"
    if _projections(visual) is None:
        return "its image projection is not a matrix"
    if getattr(trunk, "rope_mixed", False):
        return "its layers have rotary positions of their own each"
    kinds = {kind for block in trunk.blocks if (kind := _other_kind(block))}
    return OTHER_LAYERS.format(tower="image", kind=kinds.pop()) if kinds else None


def _patches_are_dropped(trunk: Any) -> bool:
    return not isinstance(trunk.patch_drop, nn.Identity | None)


def _other_kind(block: Any) -> str | None:
    """The name of what no reader here knows about a block."""
    if type(block) not in (VitBlock, EvaBlock, EvaBlockPostNorm):
        return type(block).__name__
    attn = block.attn
    if type(attn) not in (TimmAttention, EvaAttention, AttentionRope):
        return type(attn).__name__
    if not isinstance(attn.q_norm, nn.Identity) or attn.gate is not None or getattr(attn, "num_kv_groups", 1) > 1:
        return "query-normalised, gated or grouped attention"
    return None if type(block.mlp) in (Mlp, GluMlp, SwiGLU, GeGluMlp) else type(block.mlp).__name__


def _projections(visual: nn.Module) -> list[nn.Linear] | None:
    """The linear layers that lead to the embedding, one after another; None where there are others."""
    head: Any = visual.head
    trunk: Any = visual.trunk
    layers = [trunk.head, *head.children()]
    layers = [layer for layer in layers if not isinstance(layer, nn.Identity | nn.Dropout)]
    return layers if len(layers) <= 1 and all(isinstance(layer, nn.Linear) for layer in layers) else None


def timm_form(visual: nn.Module) -> ImageForm:
    """The form of a TimmModel that `timm_problem` has nothing against."""
    trunk: Any = visual.trunk
    projections = _projections(visual) or []
    return ImageForm(
        size=cast(tuple[int, int], visual.image_size),
        n_rows=trunk.num_prefix_tokens + trunk.patch_embed.num_patches,
        width=trunk.embed_dim,
        pooled_width=trunk.embed_dim,
        blocks=list(trunk.blocks),
        freeze=partial(_freeze, trunk),
        embed=partial(_embed, trunk),
        pool=_pool(trunk),
        projection=partial(_projection, trunk, projections),
    )


def _embed(trunk: Any, images: Tensor) -> Tensor:
    x = trunk._pos_embed(trunk.patch_embed(images))
    return trunk.norm_pre(x[0] if isinstance(trunk, Eva) else x)


def _projection(trunk: Any, projections: list[nn.Linear]) -> Projection:
    """SigLIP has none: the identity."""
    if not projections:
        return Projection(torch.eye(trunk.embed_dim, device=trunk.pos_embed.device), None)
    (layer,) = projections
    return Projection(layer.weight.detach().T, None if layer.bias is None else layer.bias.detach())


def _pool(trunk: Any) -> Pool:
    if trunk.global_pool == "token":
        return ClassToken(nn.Sequential(trunk.norm, trunk.fc_norm))
    if trunk.global_pool == "avg":
        return Mean(trunk.num_prefix_tokens, trunk.norm, trunk.fc_norm)
    assert isinstance(trunk.attn_pool, AttentionPoolLatent)
    seen = isinstance(trunk, Eva) or trunk.pool_include_prefix
    return Attention(trunk.norm, trunk.attn_pool, trunk.fc_norm, 0 if seen else trunk.num_prefix_tokens)


def _freeze(trunk: Any, block: Any, dtype: torch.dtype) -> Block:
    first, second = (_gamma(block, name) for name in ("1", "2"))
    norms: list[blocks.Norm | None] = [norm(block.norm1), norm(block.norm2)]
    after: tuple[blocks.Norm | None, blocks.Norm | None] = (None, None)
    if isinstance(block, EvaBlockPostNorm):
        after, norms = (norms[0], norms[1]), [None, None]
    return Block(
        heads=block.attn.num_heads,
        qkv=_qkv(block.attn, dtype),
        out=linear(block.attn.proj, dtype, first),
        mlp=_mlp(block.mlp, dtype, second),
        ln_1=norms[0],
        ln_2=norms[1],
        rope=_rope(trunk, block),
        inner=norm(block.attn.norm),
        branch_norms=after,
    )


def _gamma(block: Any, number: str) -> Tensor | None:
    """LayerScale: a parameter of an Eva block, a layer of a ViT's."""
    if isinstance(block, VitBlock):
        scale = getattr(block, f"ls{number}")
        return None if isinstance(scale, nn.Identity) else scale.gamma
    return getattr(block, f"gamma_{number}", None)


def _qkv(attn: Any, dtype: torch.dtype) -> Linear:
    """One layer for query, key and value, whatever parts the model keeps them in."""
    if attn.qkv is None:
        return joined([attn.q_proj, attn.k_proj, attn.v_proj], dtype)
    if getattr(attn, "q_bias", None) is None:
        return linear(attn.qkv, dtype)
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]).detach()
    return Linear(attn.qkv.weight.detach().to(dtype), bias.to(dtype))


def _mlp(mlp: Any, dtype: torch.dtype, gamma: Tensor | None) -> blocks.Mlp:
    activation: Callable[[Tensor], Tensor] = mlp.act
    if isinstance(mlp, GeGluMlp):
        fc, proj = joined([mlp.w0, mlp.w1], dtype), linear(mlp.w2, dtype, gamma)
        return blocks.Mlp(fc, activation, proj, gated=True, before=norm(mlp.norm))
    fc = joined([mlp.fc1_g, mlp.fc1_x], dtype) if isinstance(mlp, SwiGLU) else linear(mlp.fc1, dtype)
    if isinstance(mlp, GluMlp) and mlp.gate_last:
        fc = _swapped(fc)
    return blocks.Mlp(fc, activation, linear(mlp.fc2, dtype, gamma), not isinstance(mlp, Mlp), norm(mlp.norm))


def _swapped(fc: Linear) -> Linear:
    """Gate before value."""
    bias = None if fc.bias is None else torch.cat(fc.bias.chunk(2)[::-1])
    return fc._replace(weight=torch.cat(fc.weight.chunk(2)[::-1]), bias=bias)


def _rope(trunk: Any, block: Any) -> Rope | None:
    """The positions of a tower; the class token has none."""
    if getattr(trunk, "rope", None) is None:
        return None
    sin, cos = trunk.rope.get_embed().detach().float().chunk(2, dim=-1)
    skip = trunk.num_prefix_tokens
    cos = torch.cat([torch.ones_like(cos[:1]).expand(skip, -1), cos])
    sin = torch.cat([torch.zeros_like(sin[:1]).expand(skip, -1), sin])
    return Rope(cos[:, None], sin[:, None], block.attn.rotate_half)
