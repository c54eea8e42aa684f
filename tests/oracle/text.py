"""Text towers for the oracle. C prompts, L rows of the frozen tower, K tokens, D width, E embedding.

A tower embeds token ids (C, L) as (C, L, D), runs a block with K tokens behind row 0, and reads the frozen rows (C, E)
as open_clip reads them. With a causal mask row 0 does not see the tokens; without one every row does, and the tokens see
each other and all rows that are not masked.
"""

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn


class OpenClipText:
    """The text tower that a CLIP carries itself, or a TextTransformer: causal or not, with CoCa's class row or not."""

    front = 1

    def __init__(self, text: nn.Module):
        self.text, self.blocks = text, text.transformer.resblocks

    def embed(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        if hasattr(self.text, "_embeds"):
            return self.text._embeds(ids)
        return self.text.token_embedding(ids) + self.text.positional_embedding, self.text.attn_mask

    def run(self, block: nn.Module, x: Tensor, mask: Tensor | None, k: int) -> Tensor:
        return block(x, attn_mask=None if mask is None else widened(mask, k))

    def read(self, x: Tensor, ids: Tensor) -> Tensor:
        text = self.text
        if getattr(text, "cls_emb", None) is not None:
            pooled = text.ln_final(x[:, -1])
        else:
            pool_type = text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type
            eos_id = text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id
            pooled = text_global_pool(text.ln_final(x), ids, pool_type, eos_id)
        if text.text_projection is None:
            return pooled
        return text.text_projection(pooled) if callable(text.text_projection) else pooled @ text.text_projection


def widened(mask: Tensor, k: int) -> Tensor:
    """A causal mask (..., L, L) for K more rows behind row 0, which only later rows see: (..., L + K, L + K)."""
    length = mask.shape[-1] + k
    rows = torch.tensor([0, *range(1 + k, length)])
    wide = mask.new_zeros(*mask.shape[:-2], length, length)
    wide[..., rows[:, None], rows] = mask
    wide[..., 0, 1 : 1 + k] = float("-inf")
    wide[..., 1 : 1 + k, 1:] = mask.new_full((k, length - 1), float("-inf")).triu(1)
    return wide


class RobertaText:
    """HFTextEncoder over RoBERTa and XLM-R."""

    front = 1

    def __init__(self, text: nn.Module):
        self.text, self.transformer, self.blocks = text, text.transformer, self.blocks_of(text.transformer)

    @staticmethod
    def blocks_of(transformer: nn.Module) -> nn.ModuleList:
        return transformer.encoder.layer

    def real(self, ids: Tensor) -> Tensor:
        """Which rows are not padding (C, L)."""
        return ids != self.text.config.pad_token_id

    def embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.transformer.embeddings(input_ids=ids), self.real(ids)

    def run(self, block: nn.Module, x: Tensor, real: Tensor, k: int) -> Tensor:
        return block(x, keys_mask(real, k))

    def final(self, x: Tensor) -> Tensor:
        return x

    def read(self, x: Tensor, ids: Tensor) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        output = BaseModelOutput(last_hidden_state=self.final(x))
        return self.text.proj(self.text.pooler(output, self.real(ids).long()))


def keys_mask(real: Tensor, k: int) -> Tensor:
    """(C, L) -> whom each of L + K rows sees (C, 1, L + K, L + K): the tokens and what is not padding."""
    seen = torch.cat([real[:, :1], real.new_ones(len(real), k), real[:, 1:]], dim=1)
    return seen[:, None, None].expand(-1, 1, seen.shape[1], -1)


class MT5Text(RobertaText):
    """HFTextEncoder over mT5's encoder: pairs with a token have the bias 0."""

    @staticmethod
    def blocks_of(transformer: nn.Module) -> nn.ModuleList:
        return transformer.block

    def embed(self, ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        bias = self.blocks[0].layer[0].SelfAttention.compute_bias(ids.shape[1], ids.shape[1])
        return self.transformer.embed_tokens(ids), (self.real(ids), bias)

    def run(self, block: nn.Module, x: Tensor, context: tuple[Tensor, Tensor], k: int) -> Tensor:
        real, bias = context
        length = x.shape[1]
        rows = torch.tensor([0, *range(1 + k, length)])
        wide = bias.new_zeros(1, bias.shape[1], length, length)
        wide[..., rows[:, None], rows] = bias
        return block(x, keys_mask(real, k), wide)[0]

    def final(self, x: Tensor) -> Tensor:
        return self.transformer.final_layer_norm(x)


class M2M100Text(RobertaText):
    """HFTextEncoder over NLLB's encoder."""

    @staticmethod
    def blocks_of(transformer: nn.Module) -> nn.ModuleList:
        return transformer.layers

    def embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        words = self.transformer.embed_tokens(ids)
        return words + self.transformer.embed_positions(ids, words), self.real(ids)

    def final(self, x: Tensor) -> Tensor:
        return self.transformer.layer_norm(x)


OF_TRANSFORMERS = {"roberta": RobertaText, "xlm-roberta": RobertaText, "mt5": MT5Text, "m2m_100": M2M100Text}


def text_tower(text: nn.Module) -> OpenClipText | RobertaText:
    """The tower for open_clip's model, or for the `text` of one."""
    if hasattr(text, "pooler"):
        return OF_TRANSFORMERS[text.config.model_type](text)
    return OpenClipText(text)
