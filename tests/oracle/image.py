"""Image towers for the oracle. B images, L rows of the frozen tower, K slots, D width, W width after pooling, E embedding.

A tower embeds images (B, L, D), runs a block with K tokens behind its first `front` rows, pools the frozen rows (B, W)
and the slots (B, W), and projects either (B, E). Attention has no order, so where the tokens stand changes nothing.
"""

import torch
from torch import Tensor, nn


class OpenClipImage:
    """open_clip's VisionTransformer: its class token is read, or its patches are averaged, or it has CoCa's pooling."""

    front = 1

    def __init__(self, visual: nn.Module):
        self.visual, self.blocks = visual, visual.transformer.resblocks

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        return self.visual._embeds(images), None

    def run(self, block: nn.Module, x: Tensor, context: None, k: int) -> Tensor:
        return block(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.visual._pool(x)[0]

    def pool_slots(self, slots: Tensor) -> Tensor:
        visual = self.visual
        if visual.attn_pool is not None:
            return visual._pool(slots)[0]  # query 0 of the attention pooling over the slots alone
        if visual.final_ln_after_pool:
            return visual.ln_post(slots.mean(dim=1))
        return visual.ln_post(slots).mean(dim=1)

    def project(self, pooled: Tensor) -> Tensor:
        return pooled @ self.visual.proj


class TimmImage:
    """timm's VisionTransformer and Eva inside open_clip's TimmModel, with a class token or attention pooling."""

    def __init__(self, visual: nn.Module):
        self.visual, self.trunk, self.blocks = visual, visual.trunk, visual.trunk.blocks
        self.front = self.trunk.num_prefix_tokens

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.trunk._pos_embed(self.trunk.patch_embed(images))
        x, rope = x if isinstance(x, tuple) else (x, None)
        return self.trunk.norm_pre(x), rope

    def run(self, block: nn.Module, x: Tensor, rope: Tensor | None, k: int) -> Tensor:
        """The tokens are the first rows that timm rotates, by nothing: their sines are 0 and their cosines 1."""
        if rope is None:
            return block(x)
        half = rope.shape[-1] // 2
        unmoved = torch.cat([rope.new_zeros(k, half), rope.new_ones(k, half)], dim=-1)
        return block(x, rope=torch.cat([unmoved, rope]))

    def pool(self, x: Tensor) -> Tensor:
        return self.trunk.forward_head(self.trunk.norm(x), pre_logits=True)

    def pool_slots(self, slots: Tensor) -> Tensor:
        slots = self.trunk.norm(slots)
        return self.trunk.fc_norm(slots.mean(dim=1) if self.trunk.attn_pool is None else self.trunk.attn_pool(slots))

    def project(self, pooled: Tensor) -> Tensor:
        return self.visual.head(self.trunk.head(pooled))


def image_tower(visual: nn.Module) -> OpenClipImage | TimmImage:
    return TimmImage(visual) if hasattr(visual, "trunk") else OpenClipImage(visual)
