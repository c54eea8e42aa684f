"""The plainest model that follows the method's definition: the blocks of open_clip, timm and transformers themselves,
whole padded prompts for every class, full passes for every image, nothing shared and nothing cut. Slow on purpose; for
comparison and for timing against.

image.py and text.py have what families of towers differ in.
"""

import torch
import torch.nn.functional as F

from tests.oracle.image import image_tower
from tests.oracle.text import text_tower

LOGIT_SCALE = 100.0


class Oracle:
    """Takes an open_clip model, its tokenizer and an adapter; reads the adapter's tensors, not its code."""

    def __init__(self, clip, tokenizer, adapter, class_names, template):
        self.clip, self.config = clip, adapter.config
        self.parameters = dict(adapter.named_parameters())
        self.image, self.text = image_tower(clip.visual), text_tower(getattr(clip, "text", clip))
        self.n_insert = min(len(self.image.blocks), len(self.text.blocks)) - self.config.insertion_depth + 1
        prompts = [template.replace("{}", name.replace("_", " ")) for name in class_names]
        self.token_ids = tokenizer(prompts)

    def tokens(self, tower: str, index: int) -> torch.Tensor:
        """R_i of the index-th insertion layer (K, D)."""
        space, get = self.parameters["space"], lambda name: self.parameters[f"{tower}_aligner.{name}"]
        if self.config.method == "mmrl":
            return space @ get("weight")[index].T + get("bias")[index]
        return space @ (get("weight") + get("A")[index] @ get("B")[index]).T + get("bias")[index]

    def walk(self, tower, inputs: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """All blocks over images or token ids; tokens enter after the first slots in the last n_insert of them. The
        rows of the frozen tower (B, L, D), and the K slots (B, K, D)."""
        x, context = tower.embed(inputs)
        k, front, first = self.config.n_tokens, tower.front, len(tower.blocks) - self.n_insert
        for i, block in enumerate(tower.blocks):
            if i >= first:
                tokens = self.tokens(name, i - first).expand(len(x), -1, -1)
                if i > first and self.config.method == "mmrlpp":
                    tokens = self.config.beta * tokens + (1 - self.config.beta) * x[:, front : front + k]
                x = torch.cat([x[:, :front], tokens, x[:, front:] if i == first else x[:, front + k :]], dim=1)
            x = tower.run(block, x, context, k if i >= first else 0)
        if self.n_insert == 0:
            return x, x[:, :0]
        return torch.cat([x[:, :front], x[:, front + k :]], dim=1), x[:, front : front + k]

    def text_features(self) -> torch.Tensor:
        x, _ = self.walk(self.text, self.token_ids, "text")
        return F.normalize(self.text.read(x, self.token_ids), dim=-1)

    def image_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, slots = self.walk(self.image, images, "image")
        f_c = self.image.project(self.image.pool(x))
        return F.normalize(f_c, dim=-1), F.normalize(self.represented(self.image.pool_slots(slots)), dim=-1)

    def represented(self, pooled: torch.Tensor) -> torch.Tensor:
        """P_r of the pooled slots: (B, W) -> (B, E)."""
        if self.config.method == "mmrl":
            return pooled @ self.parameters["projection.weight"]
        residual = self.parameters["projection.A"] @ self.parameters["projection.B"]
        return self.image.project(pooled) + pooled @ residual

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        f_c, f_r = self.image_features(images)
        w = self.text_features()
        by_class, by_rep = LOGIT_SCALE * f_c @ w.T, LOGIT_SCALE * f_r @ w.T
        fused = self.config.alpha * by_class + (1 - self.config.alpha) * by_rep
        return {
            "logits_class": by_class, "logits_rep": by_rep, "logits_fused": fused,
            "image_features": f_c, "rep_features": f_r, "text_features": w,
        }  # fmt: skip

    @torch.no_grad()
    def zero_shot(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """open_clip's own encoders: (B, E), (C, E)."""
        return self.clip.encode_image(images, normalize=True), self.clip.encode_text(self.token_ids, normalize=True)

    def loss(self, images: torch.Tensor, labels: torch.Tensor, zero_shot_text: torch.Tensor) -> torch.Tensor:
        """One training step's loss as the published code computes it: a second full pass for the frozen features."""
        out = self.forward(images)
        with torch.no_grad():
            zero_image = self.clip.encode_image(images, normalize=True)
        alpha, reg_weight = self.config.alpha, self.config.reg_weight
        cross_entropy = alpha * F.cross_entropy(out["logits_class"], labels)
        cross_entropy = cross_entropy + (1 - alpha) * F.cross_entropy(out["logits_rep"], labels)
        image_reg = 1 - F.cosine_similarity(out["image_features"], zero_image).mean()
        text_reg = 1 - F.cosine_similarity(out["text_features"], zero_shot_text).mean()
        return cross_entropy + reg_weight * (image_reg + text_reg)
