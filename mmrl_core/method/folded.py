"""The form for inference: everything that no image changes is computed once, beforehand.

B images, C classes, P patches, K representation tokens, D the image tower's width, E embedding width, S side in pixels.
"""

import copy
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl_core.clip.backbone import LOGIT_SCALE, Backbone
from mmrl_core.clip.blocks import run
from mmrl_core.clip.families.images import Projection
from mmrl_core.clip.openclip import VisionTransformer
from mmrl_core.clip.towers import ImageTower
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.heads import Head
from mmrl_core.method.logit_weights import PLAIN, LogitWeights
from mmrl_core.method.model import AdaptedCLIP, ImageFeatures, Output
from mmrl_core.method.shapes import TOWER, TowerCard


class WholeTower(ImageTower):
    """An image tower in one piece: no trunk is kept and no batch is cut, so that its graph fits batches of any size."""

    def below(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> input of the first token-carrying layer (B, n, D)."""
        x = self.backbone.embed_images(images, self.dtype)
        for block in self.blocks[: self.first]:
            x = run(block, x)
        return x


class FoldedCLIP(nn.Module):
    """An AdaptedCLIP after training: constant tokens, class features w and projection P_r around the image tower.

    An image costs one pass of the tower, less what no one reads of its last layer; with a head beside tokens the upper
    layers a second time. P_r is the adapter's projection of the representation features with the frozen one multiplied
    in. A baseline has no tokens.
    """

    tokens: Tensor | None  # (n_insert, K, D)
    projection: Tensor | None  # P_r (D', E)
    projection_bias: Tensor | None  # (E,)
    text_features: Tensor  # w (C, E)

    def __init__(
        self, tower: WholeTower, text_features: Tensor, tokens: Tensor | None = None,
        projection: Projection | None = None, alpha: float = 1.0, beta: float = 1.0, head: Head | None = None,
        weights: LogitWeights = PLAIN,
    ):  # fmt: skip
        super().__init__()
        self.tower, self.alpha, self.beta = tower, alpha, beta
        self.head, self.weights = head if weights.head else None, weights
        self.register_buffer("tokens", tokens)
        self.register_buffer("projection", projection and projection.weight)
        self.register_buffer("projection_bias", projection and projection.bias)
        self.register_buffer("text_features", text_features)

    @classmethod
    @torch.no_grad()
    def from_model(cls, model: AdaptedCLIP) -> "FoldedCLIP":
        """Fold a model as it is now; later changes of its adapter do not reach the folded form."""
        adapter, frozen, text = model.adapter, model.image_tower.proj, model.text_features()
        tower = WholeTower(model.backbone, adapter.n_insert, model.image_tower.dtype)
        head = copy.deepcopy(adapter.head)
        if isinstance(adapter, Baseline):
            return cls(tower, text, head=head, weights=adapter.weights)
        assert isinstance(adapter, Adapter)  # one run, not a stack
        projection = adapter.projection.folded(frozen)
        config = adapter.config
        return cls(tower, text, adapter.image_tokens(), projection, config.alpha, config.composition, head,
                   adapter.weights)  # fmt: skip

    @property
    def backbone(self) -> Backbone:
        return self.tower.backbone

    def forward(self, images: Tensor, text_features: Tensor | None = None) -> Output:
        """What AdaptedCLIP gives for (B, 3, S, S); `text_features` (C, E) of other classes take the place of w.

        On a CPU in parts that stay in its cache.
        """
        return self.score(self.features(images), text_features)

    def features(self, images: Tensor) -> ImageFeatures:
        """Features of (B, 3, S, S)."""
        parts = [self.encode(part) for part in images.split(self.tower.chunk(len(images)))]
        adapted, rep, frozen = zip(*parts, strict=True)
        return ImageFeatures(torch.cat(adapted), torch.cat(rep), None if frozen[0] is None else torch.cat(frozen))

    def encode(self, images: Tensor) -> ImageFeatures:
        """Features of all images at once."""
        x = self.tower.below(images)
        if self.tokens is None or self.projection is None:
            return ImageFeatures(*[self.tower.frozen_above(x)] * 3)
        rows, slots = self.tower.above(x, self.tower.layers(self.tokens), self.beta)
        f_r = F.normalize(Projection(self.projection, self.projection_bias)(slots), dim=-1)
        frozen = self.tower.frozen_above(x) if self.head is not None else None
        return ImageFeatures(F.normalize(self.tower.proj(rows), dim=-1), f_r, frozen)

    def score(self, features: ImageFeatures, text_features: Tensor | None = None) -> Output:
        """Logits of features."""
        f_c, f_r, frozen = features
        w = self.text_features if text_features is None else text_features
        by_class, by_rep = LOGIT_SCALE * f_c @ w.T, LOGIT_SCALE * f_r @ w.T
        fused = self.alpha * by_class + (1 - self.alpha) * by_rep
        head = None if self.head is None or frozen is None else self.head(frozen)
        return Output(by_class, by_rep, fused, f_c, f_r, w, head)


def folded_bytes(
    backbone: Backbone, adapter: Adapter | Baseline, class_names: list[str], template: str
) -> bytes | None:
    """folded.safetensors: what follows from an adapter and its backbone, and NumPy needs to predict as PyTorch does. In
    the header it says of the image tower what the weights do not.

    None for a tower that `light/` does not cover, and for classes that no prompts can be made of.
    """
    facts = tower_facts(backbone)
    if facts is None:
        return None
    try:
        folded = FoldedCLIP.from_model(AdaptedCLIP(backbone, adapter, class_names, template))
    except UserError:  # two names that make one prompt
        return None
    tensors = {"text_features": folded.text_features, "tokens": folded.tokens, "projection": folded.projection}
    kept = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items() if tensor is not None}
    return safetensors.torch.save(kept, {TOWER: canonical_json(facts).decode()})


def tower_facts(backbone: Backbone) -> TowerCard | None:
    """Of a plain tower; None for another."""
    visual: Any = backbone.visual
    if not isinstance(visual, VisionTransformer) or not backbone.image_form.pool.reads_first:
        return None
    blocks: list[Any] = backbone.image_blocks
    norms = [visual.ln_pre, visual.ln_post, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
    scales = [scale for block in blocks for scale in (block.ls_1, block.ls_2)]
    kinds = {(type(block.mlp[1]).__name__, getattr(block.mlp[1], "approximate", "none")) for block in blocks}
    plain = (
        all(isinstance(norm, nn.LayerNorm) for norm in norms)
        and all(isinstance(scale, nn.Identity) for scale in scales)
        and visual.conv1.bias is None
        and kinds in ({("GELU", "none")}, {("QuickGELU", "none")})
        and len({norm.eps for norm in norms}) == 1
    )
    if not plain:
        return None
    size, mean, std, resize_mode, interpolation = backbone.view_settings
    return {
        "heads": blocks[0].attn.num_heads,
        "activation": "GELU" if ("GELU", "none") in kinds else "QuickGELU",
        "eps": norms[0].eps,
        "size": size,
        "mean": list(mean),
        "std": list(std),
        "resize_mode": resize_mode,
        "interpolation": interpolation,
    }
