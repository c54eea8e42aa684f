"""MMRL and MMRL++ on a CLIP without a class token, from the definitions and timm's and open_clip's own blocks.

K tokens enter both towers in their last n layers. In what is read from the image tower the definitions leave a choice:
`Reading`. Only the frozen layers below the tokens are computed once; nothing else is shared or cut.

B images, C classes, P patches, L context length, D width of both towers and of the embedding, n layers with tokens.
"""

from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pooling.siglip import Tokenizer
from mmrl_core.clip import LOGIT_SCALE
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.model import Output


class Reading(NamedTuple):
    """What class and representation feature are, and what logits multiply the cosine with.

    f_c: the frozen attention pool over the `patches`, or over patches and slots (`both`). f_r, before P_r: the pool
    over the `slots`, the slots' `mean`, or the pool over `both`. scale: the method's `constant` or the model's `own`.
    """

    f_c: str = "patches"
    f_r: str = "slots"
    scale: str = "constant"


class Frozen(NamedTuple):
    """Images (B, P, D) or classes (C, L, D) below the first layer with tokens, and their zero-shot features (.., D)."""

    trunk: Tensor
    zero_shot: Tensor


class Towers:
    """The frozen model around the layers that carry tokens."""

    def __init__(self, clip: nn.Module, tokenizer: Tokenizer, n_insert: int):
        self.clip, self.tokenizer, self.vision = clip, tokenizer, clip.visual.trunk
        self.lower_image, self.upper_image = _cut(self.vision.blocks, n_insert)
        self.lower_text, self.upper_text = _cut(clip.text.transformer.resblocks, n_insert)
        self.own_scale = clip.logit_scale.exp().item()

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Frozen:
        """Of pixels (B, 3, S, S)."""
        x = self.vision.norm_pre(self.vision._pos_embed(self.vision.patch_embed(pixels)))
        return Frozen(_through(self.lower_image, x), self.clip.encode_image(pixels, normalize=True))

    @torch.no_grad()
    def classes(self, class_names: list[str], template: str) -> Frozen:
        ids = self.tokenizer([template.replace("{}", name) for name in class_names])
        x, _ = self.clip.text._embeds(ids)  # there is no mask: padding is attended
        return Frozen(_through(self.lower_text, x), self.clip.encode_text(ids, normalize=True))

    def text_features(self, trunk: Tensor, adapter: Adapter) -> Tensor:
        """w (C, D): read at the last row, as the frozen model is; the tokens stand behind it."""
        rows, _ = _carry(self.upper_text, trunk, adapter.text_tokens(), adapter.config.composition)
        return F.normalize(self.clip.text.text_projection(self.clip.text.ln_final(rows)[:, -1]), dim=-1)

    def image_features(self, trunk: Tensor, adapter: Adapter, reading: Reading) -> tuple[Tensor, Tensor]:
        """f_c and f_r, (B, D) each."""
        ends = _carry(self.upper_image, trunk, adapter.image_tokens(), adapter.config.composition)
        rows = dict(zip(("patches", "slots"), map(self.vision.norm, ends), strict=True))
        rows["both"] = torch.cat([rows["patches"], rows["slots"]], dim=1)
        f_c = self.vision.attn_pool(rows[reading.f_c])
        pooled = rows["slots"].mean(1) if reading.f_r == "mean" else self.vision.attn_pool(rows[reading.f_r])
        return F.normalize(f_c, dim=-1), F.normalize(projected(pooled, adapter), dim=-1)

    def forward(self, trunk: Tensor, w: Tensor, adapter: Adapter, reading: Reading) -> Output:
        """Logits of images (B, P, D) against classes (C, D)."""
        f_c, f_r = self.image_features(trunk, adapter, reading)
        scale = LOGIT_SCALE if reading.scale == "constant" else self.own_scale
        by_class, by_rep = scale * f_c @ w.T, scale * f_r @ w.T
        return Output(by_class, by_rep, adapter.fused(by_class, by_rep), f_c, f_r, w)


def projected(pooled: Tensor, adapter: Adapter) -> Tensor:
    """P_r (B, D): MMRL's own matrix; MMRL++'s A B beside the model's projection, which in a SigLIP is the identity."""
    tensors = dict(adapter.projection.named_parameters())
    if adapter.config.method == "mmrl":
        return pooled @ tensors["weight"]
    return pooled + pooled @ tensors["A"] @ tensors["B"]


def measures(clip: nn.Module) -> SimpleNamespace:
    """What an adapter asks of a backbone."""
    width = clip.visual.trunk.embed_dim
    return SimpleNamespace(
        name="small SigLIP", device="cpu", depth=len(clip.visual.trunk.blocks), image_width=width,
        text_width=clip.text.width, pooled_width=width, embed_dim=width,
    )  # fmt: skip


def _cut(blocks: nn.Module, n_insert: int) -> tuple[list[nn.Module], list[nn.Module]]:
    return list(blocks)[:-n_insert], list(blocks)[-n_insert:]


def _through(blocks: list[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _carry(blocks: list[nn.Module], x: Tensor, tokens: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Frozen rows and slots behind the blocks: tokens (n, K, D) are put behind the rows (B, R, D), then renewed."""
    rows = x.shape[1]
    for layer, (block, fresh) in enumerate(zip(blocks, tokens, strict=True)):
        slots = fresh.expand(len(x), -1, -1)
        if layer:
            slots = beta * slots + (1 - beta) * x[:, rows:]
        x = block(torch.cat([x[:, :rows], slots], dim=1))
    return x[:, :rows], x[:, rows:]
