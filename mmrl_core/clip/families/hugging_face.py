"""Text towers of transformers in open_clip's HFTextEncoder: RoBERTa and XLM-R, mT5's encoder, NLLB's (M2M100).

None is causal, and all hide their padding: prompts are cut at the longest one. C prompts, n rows, D width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmrl_core.clip.blocks import Block, Linear, Mlp, Norm
from mmrl_core.clip.families.open_clip_blocks import joined, linear, norm
from mmrl_core.clip.families.texts import NOT_READ, Prompts, TextForm, one_hot

TextEncoder = Any  # open_clip's HFTextEncoder and the modules in it, by names that transformers gives them


class Reader(NamedTuple):
    """How a kind of transformers' models is read."""

    blocks: Callable[[TextEncoder], Sequence[nn.Module]]
    freeze: Callable[[Any, torch.dtype], Block]
    embed: Callable[[TextEncoder, Tensor], Tensor]  # model, ids (C, n) -> (C, n, D)
    norm: Callable[[TextEncoder], Callable[[Tensor], Tensor]]  # behind the last block
    bias: Callable[[TextEncoder, int], Tensor] | None = None  # of n rows for each other (1, H, n, n)


def hugging_face_problem(text: TextEncoder) -> str | None:
    """Why an HFTextEncoder cannot be adapted."""
    kind = text.config.model_type
    if kind not in READERS:
        return f"its text tower is a {kind} of transformers, which has no reader here"
    if type(text.pooler).__name__ not in POOLERS or (_pools_itself(text) and kind != "m2m_100"):
        return NOT_READ
    return None


def _pools_itself(text: TextEncoder) -> bool:
    """Whether the class row goes through a pooler of the model's own."""
    return type(text.pooler).__name__ == "ClsPooler" and getattr(text.transformer, "pooler", None) is not None


POOLERS = ("MeanPooler", "ClsPooler", "ClsLastHiddenStatePooler")


def hugging_face_form(text: TextEncoder) -> TextForm:
    """The form of an HFTextEncoder that `hugging_face_problem` has nothing against."""
    reader = READERS[text.config.model_type]
    return TextForm(
        width=text.transformer.get_input_embeddings().weight.shape[1],
        blocks=reader.blocks(text.transformer),
        freeze=reader.freeze,
        causal=False,
        embed=partial(reader.embed, text.transformer),
        ends=lambda ids: ids.new_zeros(len(ids)),
        prompts=partial(_prompts, text, reader),
        norm=reader.norm(text.transformer),
        project=text.proj,
    )


def _prompts(text: TextEncoder, reader: Reader, ids: Tensor) -> Prompts:
    real = ids != text.config.pad_token_id
    length = int(real.any(dim=0).nonzero().max()) + 1
    ids, real = ids[:, :length], real[:, :length]
    sees = real[:, None, None].expand(-1, 1, length, -1)
    if reader.bias is not None:
        hidden = torch.zeros(sees.shape, device=ids.device).masked_fill(~sees, -torch.inf)
        sees = hidden + reader.bias(text.transformer, length)
    mean = type(text.pooler).__name__ == "MeanPooler"
    read = real / real.sum(dim=1, keepdim=True) if mean else one_hot(ids.new_zeros(len(ids)), length)
    return Prompts(reader.embed(text.transformer, ids), sees, read)


def _roberta_block(layer: Any, dtype: torch.dtype) -> Block:
    """Norms lie behind the additions."""
    attention, output = layer.attention.self, layer.attention.output
    return Block(
        heads=attention.num_attention_heads,
        qkv=joined([attention.query, attention.key, attention.value], dtype),
        out=linear(output.dense, dtype),
        mlp=Mlp(
            linear(layer.intermediate.dense, dtype),
            layer.intermediate.intermediate_act_fn,
            linear(layer.output.dense, dtype),
        ),
        sum_norms=(norm(output.LayerNorm), norm(layer.output.LayerNorm)),
    )


def _mt5_block(layer: Any, dtype: torch.dtype) -> Block:
    """Scores are not divided by the root of a head's width: the queries are multiplied by it."""
    (own, feed), attention = layer.layer, layer.layer[0].SelfAttention
    qkv = joined([attention.q, attention.k, attention.v], torch.float32)
    weight = qkv.weight.clone()
    weight[: qkv.weight.shape[0] // 3] *= attention.key_value_proj_dim**0.5
    dense = feed.DenseReluDense
    gated = hasattr(dense, "wi_0")
    fc = joined([dense.wi_0, dense.wi_1], dtype) if gated else linear(dense.wi, dtype)
    return Block(
        heads=attention.n_heads,
        qkv=Linear(weight.to(dtype), None),
        out=linear(attention.o, dtype),
        mlp=Mlp(fc, dense.act, linear(dense.wo, dtype), gated),
        ln_1=_rms_norm(own.layer_norm),
        ln_2=_rms_norm(feed.layer_norm),
    )


def _rms_norm(layer: Any) -> Norm:
    return Norm(layer.weight.detach(), None, layer.variance_epsilon, rms=True)


def _mt5_bias(stack: Any, length: int) -> Tensor:
    return stack.block[0].layer[0].SelfAttention.compute_bias(length, length)


def _m2m_block(layer: Any, dtype: torch.dtype) -> Block:
    attention = layer.self_attn
    return Block(
        heads=attention.num_heads,
        qkv=joined([attention.q_proj, attention.k_proj, attention.v_proj], dtype),
        out=linear(attention.out_proj, dtype),
        mlp=Mlp(linear(layer.fc1, dtype), layer.activation_fn, linear(layer.fc2, dtype)),
        ln_1=norm(layer.self_attn_layer_norm),
        ln_2=norm(layer.final_layer_norm),
    )


ROBERTA = Reader(
    blocks=lambda model: list(model.encoder.layer),
    freeze=_roberta_block,
    embed=lambda model, ids: model.embeddings(input_ids=ids),
    norm=lambda model: nn.Identity(),
)
READERS = {
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "mt5": Reader(
        blocks=lambda stack: list(stack.block),
        freeze=_mt5_block,
        embed=lambda stack, ids: stack.embed_tokens(ids),
        norm=lambda stack: stack.final_layer_norm,
        bias=_mt5_bias,
    ),
    "m2m_100": Reader(
        blocks=lambda encoder: list(encoder.layers),
        freeze=_m2m_block,
        embed=lambda encoder, ids: encoder.embed_tokens(ids) + encoder.embed_positions(ids),
        norm=lambda encoder: encoder.layer_norm,
    ),
}
