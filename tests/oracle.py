"""The plainest model that follows the method's definition: open_clip's own blocks, 77-token prompts for every class,
full passes for every image, nothing shared and nothing cut. Slow on purpose; for comparison and for timing against.
"""

import torch
import torch.nn.functional as F

LOGIT_SCALE = 100.0


class Oracle:
    """Takes an open_clip model, its tokenizer and an adapter; reads the adapter's tensors, not its code."""

    def __init__(self, clip, tokenizer, adapter, class_names, template):
        self.clip, self.config = clip, adapter.config
        self.parameters = dict(adapter.named_parameters())
        n_image, n_text = len(clip.visual.transformer.resblocks), len(clip.transformer.resblocks)
        self.n_insert = min(n_image, n_text) - self.config.insertion_depth + 1
        prompts = [template.replace("{}", name.replace("_", " ")) for name in class_names]
        self.token_ids = tokenizer(prompts)

    def tokens(self, tower: str, index: int) -> torch.Tensor:
        """R_i of the index-th insertion layer (K, D)."""
        space, get = self.parameters["space"], lambda name: self.parameters[f"{tower}_aligner.{name}"]
        if self.config.method == "mmrl":
            return space @ get("weight")[index].T + get("bias")[index]
        return space @ (get("weight") + get("A")[index] @ get("B")[index]).T + get("bias")[index]

    def walk(self, x: torch.Tensor, blocks, tower: str, causal: bool) -> torch.Tensor:
        """All blocks over x (B, L, D); tokens enter after the first slot in the last n_insert of them."""
        k, first = self.config.n_tokens, len(blocks) - self.n_insert
        for i, block in enumerate(blocks):
            if i >= first:
                tokens = self.tokens(tower, i - first).expand(len(x), -1, -1)
                if i > first and self.config.method == "mmrlpp":
                    tokens = self.config.beta * tokens + (1 - self.config.beta) * x[:, 1 : 1 + k]
                x = torch.cat([x[:, :1], tokens, x[:, 1:] if i == first else x[:, 1 + k :]], dim=1)
            length = x.shape[1]
            mask = torch.full((length, length), float("-inf")).triu(1) if causal else None
            x = block(x, attn_mask=mask)
        return x

    def text_features(self) -> torch.Tensor:
        clip = self.clip
        x = clip.token_embedding(self.token_ids) + clip.positional_embedding
        x = self.walk(x, clip.transformer.resblocks, "text", causal=True)
        eot = self.token_ids.argmax(-1) + self.config.n_tokens
        return F.normalize(clip.ln_final(x)[torch.arange(len(x)), eot] @ clip.text_projection, dim=-1)

    def image_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        visual = self.clip.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = self.walk(visual.ln_pre(x), visual.transformer.resblocks, "image", causal=False)
        x = visual.ln_post(x)
        projection = (
            self.parameters["projection.weight"]
            if self.config.method == "mmrl"
            else visual.proj + self.parameters["projection.A"] @ self.parameters["projection.B"]
        )
        by_rep = x[:, 1 : 1 + self.config.n_tokens].mean(dim=1) @ projection
        return F.normalize(x[:, 0] @ visual.proj, dim=-1), F.normalize(by_rep, dim=-1)

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
