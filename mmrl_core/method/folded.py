"""The form for inference: everything that no image changes is computed once, beforehand.

B images, C classes, P patches, K representation tokens, D the image tower's width, E embedding width, S side in pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl_core.clip.backbone import LOGIT_SCALE, Backbone
from mmrl_core.clip.blocks import run
from mmrl_core.clip.towers import ImageTower
from mmrl_core.method.model import AdaptedCLIP, Output


class WholeTower(ImageTower):
    """An image tower in one piece: no trunk is kept and no batch is cut, so that its graph fits batches of any size."""

    def encode(self, images: Tensor, tokens: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S), tokens (n_insert, K, D) -> ln_post of the class slot (B, D) and of the K slots (B, K, D)."""
        x = self.backbone.embed_images(images, self.dtype)
        for block in self.blocks[: self.first]:
            x = run(block, x)
        x = self.ln_post(self._adapted(x, self.layers(tokens), beta))
        return x[:, 0], x[:, 1:]


class FoldedCLIP(nn.Module):
    """An AdaptedCLIP after training: constant tokens, class features w and projection P_r around the image tower.

    An image costs one pass of the tower, less what no one reads of its last layer. P_r is the adapter's projection of
    the representation features with the frozen one multiplied in.
    """

    tokens: Tensor  # (n_insert, K, D)
    projection: Tensor  # P_r (D, E)
    text_features: Tensor  # w (C, E)

    def __init__(self, tower: WholeTower, tokens: Tensor, projection: Tensor, text_features: Tensor, alpha: float,
                 beta: float):  # fmt: skip
        super().__init__()
        self.tower, self.alpha, self.beta = tower, alpha, beta
        self.register_buffer("tokens", tokens)
        self.register_buffer("projection", projection)
        self.register_buffer("text_features", text_features)

    @classmethod
    @torch.no_grad()
    def from_model(cls, model: AdaptedCLIP) -> "FoldedCLIP":
        """Fold a model as it is now; later changes of its adapter do not reach the folded form."""
        adapter, frozen = model.adapter, model.image_tower.proj
        tower = WholeTower(model.backbone, adapter.n_insert, model.image_tower.dtype)
        projection = adapter.projection(torch.eye(len(frozen), device=frozen.device), frozen)
        config = adapter.config
        return cls(tower, adapter.image_tokens(), projection, model.text_features(), config.alpha, config.composition)

    @property
    def backbone(self) -> Backbone:
        return self.tower.backbone

    def forward(self, images: Tensor, text_features: Tensor | None = None) -> Output:
        """What AdaptedCLIP gives for (B, 3, S, S); `text_features` (C, E) of other classes take the place of w.

        On a CPU in parts that stay in its cache.
        """
        parts = [self.encode(part) for part in images.split(self.tower.chunk(len(images)))]
        f_c, f_r = map(torch.cat, zip(*parts, strict=True))
        return self.score(f_c, f_r, text_features)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """f_c and f_r (B, E), L2-normalised, of all images at once."""
        cls, slots = self.tower.encode(images, self.tokens, self.beta)
        f_r = F.normalize(slots.mean(dim=1) @ self.projection, dim=-1)
        return F.normalize(cls @ self.tower.proj, dim=-1), f_r

    def score(self, f_c: Tensor, f_r: Tensor, text_features: Tensor | None = None) -> Output:
        """Logits of features (B, E)."""
        w = self.text_features if text_features is None else text_features
        by_class, by_rep = LOGIT_SCALE * f_c @ w.T, LOGIT_SCALE * f_r @ w.T
        return Output(by_class, by_rep, self.alpha * by_class + (1 - self.alpha) * by_rep, f_c, f_r, w)
