"""The two towers: a frozen trunk below the insertion depth, and an upper part that carries representation tokens.

B images, C classes, P patches, K representation tokens, D the tower's width, E embedding width.
Both towers carry tokens in their last `n_insert` layers. What is constant is computed once, what every class shares
is computed once a step, and the last layer computes only the slots that are read. All of it is exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl_core.attention import (
    attend_after_prefix,
    finish,
    keys_values,
    queries,
    queries_keys_values,
    read_first,
    suffix_mask,
    whole_block,
)


def insert(x: Tensor, tokens: Tensor) -> Tensor:
    """Put tokens (K, D) after the first slot of every sequence: (B, L, D) -> (B, L + K, D)."""
    return torch.cat([x[:, :1], tokens.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)


def compose(x: Tensor, tokens: Tensor, beta: float) -> Tensor:
    """Renew the K slots after the first with beta * tokens + (1 - beta) * what the layer below left there.

    beta = 1 is MMRL's replacement; beta < 1 is MMRL++'s progressive representation composition.
    """
    k = tokens.shape[0]
    slots = tokens.expand(x.shape[0], -1, -1)
    if beta != 1:
        slots = beta * slots + (1 - beta) * x[:, 1 : 1 + k]
    return torch.cat([x[:, :1], slots, x[:, 1 + k :]], dim=1)


class ImageTower:
    """The image tower of a backbone, split below its last `n_insert` layers."""

    def __init__(self, backbone, n_insert: int):
        self.backbone = backbone
        blocks = backbone.image_blocks
        self.lower, self.upper = blocks[: len(blocks) - n_insert], blocks[len(blocks) - n_insert :]
        self.ln_post, self.proj = backbone.visual.ln_post, backbone.visual.proj

    @torch.no_grad()
    def trunk(self, images: Tensor) -> Tensor:
        """(B, 3, size, size) -> input of the first token-carrying layer (B, 1 + P, D); a constant of each image."""
        x = self.backbone.embed_images(images)
        for block in self.lower:
            x = whole_block(block, x)
        return x

    @torch.no_grad()
    def zero_shot(self, trunk: Tensor) -> Tensor:
        """The frozen CLIP's image features, L2-normalised: (B, 1 + P, D) -> (B, E)."""
        x = trunk
        for block in self.upper[:-1]:
            x = whole_block(block, x)
        x = read_first(self.upper[-1], x, 1)
        return F.normalize(self.ln_post(x[:, 0]) @ self.proj, dim=-1)

    def adapted(self, trunk: Tensor, tokens: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Upper layers with tokens (n_insert, K, D): ln_post of the class slot (B, D) and of the K slots (B, K, D)."""
        x = insert(trunk, tokens[0])
        for block, following in zip(self.upper[:-1], tokens[1:], strict=True):
            x = compose(whole_block(block, x), following, beta)
        x = self.ln_post(read_first(self.upper[-1], x, 1 + tokens.shape[1]))
        return x[:, 0], x[:, 1:]


class TextTower(nn.Module):
    """The text tower of a backbone for one list of classes, split below its last `n_insert` layers.

    Attention is causal, so BOS, the representation tokens and the words before the first token in which two classes
    differ are the same for every class: they run once, as a prefix of batch 1. What follows, cut at the longest
    prompt's end-of-text token, is the suffix (C, S, D). Below the insertion depth both are constants.
    """

    def __init__(self, backbone, class_names: list[str], template: str, n_insert: int):
        super().__init__()
        blocks, text = backbone.text_blocks, backbone.text
        self.lower, self.upper = blocks[: len(blocks) - n_insert], blocks[len(blocks) - n_insert :]
        self.head = (text.ln_final, text.text_projection)  # a tuple, so that they stay the backbone's alone
        token_ids = backbone.tokenize(class_names, template)
        start, end = _suffix_bounds(token_ids)
        self.register_buffer("eot", token_ids.argmax(dim=-1) - start, persistent=False)
        self._set_constants(backbone.embed_tokens(token_ids[:, :end]), start)

    @torch.no_grad()
    def _set_constants(self, x: Tensor, start: int) -> None:
        prefix, suffix = x[:1, :start], x[:, start:]
        for block in self.lower:
            prefix, suffix = self._block(block, prefix, suffix)
        self.register_buffer("prefix", prefix, persistent=False)
        self.register_buffer("suffix", suffix, persistent=False)

    @torch.no_grad()
    def zero_shot(self) -> Tensor:
        """The frozen CLIP's class features (C, E), L2-normalised."""
        prefix, suffix = self.prefix, self.suffix
        for block in self.upper[:-1]:
            prefix, suffix = self._block(block, prefix, suffix)
        return self._read(prefix, suffix)

    def adapted(self, tokens: Tensor, beta: float) -> Tensor:
        """Class features with tokens (n_insert, K, D) in the upper layers: (C, E), L2-normalised."""
        prefix, suffix = insert(self.prefix, tokens[0]), self.suffix
        for block, following in zip(self.upper[:-1], tokens[1:], strict=True):
            prefix, suffix = self._block(block, prefix, suffix)
            prefix = compose(prefix, following, beta)
        return self._read(prefix, suffix)

    @staticmethod
    def _block(block: nn.Module, prefix: Tensor, suffix: Tensor) -> tuple[Tensor, Tensor]:
        q, *prefix_kv = queries_keys_values(block, prefix)
        own_q, *suffix_kv = queries_keys_values(block, suffix)
        mask = suffix_mask(prefix.shape[1], suffix.shape[1], suffix.device)
        attended = attend_after_prefix(own_q, prefix_kv, suffix_kv, mask)
        prefix = finish(block, prefix, F.scaled_dot_product_attention(q, *prefix_kv, is_causal=True))
        return prefix, finish(block, suffix, attended)

    def _read(self, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Last layer for the end-of-text tokens alone, then ln_final and projection: (C, E)."""
        block, rows = self.upper[-1], torch.arange(len(suffix), device=suffix.device)
        read = suffix[rows, self.eot, None]  # (C, 1, D)
        seen = suffix_mask(prefix.shape[1], suffix.shape[1], suffix.device)[self.eot]  # (C, Lp + S)
        attended = attend_after_prefix(
            queries(block, read), keys_values(block, prefix), keys_values(block, suffix), seen[:, None, None]
        )
        ln_final, projection = self.head
        return F.normalize(ln_final(finish(block, read, attended)[:, 0]) @ projection, dim=-1)


def _suffix_bounds(token_ids: Tensor) -> tuple[int, int]:
    """Where classes first differ, at the latest the first end-of-text, and where the longest prompt ends."""
    eot = token_ids.argmax(dim=-1)
    differs = (token_ids != token_ids[:1]).any(dim=0).nonzero()
    first = int(differs[0]) if len(differs) else token_ids.shape[1]
    return min(first, int(eot.min())), int(eot.max()) + 1
