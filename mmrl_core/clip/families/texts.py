"""What is to know of a text tower, and open_clip's own text transformers read for it.

C prompts, L token ids of each as the tokenizer gives them, n rows that the tower computes of a prompt, D its width, E
embedding width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmrl_core.clip.blocks import Block
from mmrl_core.clip.families.open_clip_blocks import freeze, of_other_kind
from mmrl_core.clip.openclip import open_clip

if TYPE_CHECKING:
    from mmrl_core.clip.openclip import CLIP

NOT_READ = "its text tower is read in a way that is not known here"
POOLS = ("argmax", "eos", "last", "first")


class Prompts(NamedTuple):
    """Prompts as rows of the first block, cut where that changes nothing."""

    x: Tensor  # (C, n, D)
    sees: Tensor | None  # (C or 1, H or 1, n, n): true where a row sees a row, or added to the scores; None: all do
    read: Tensor  # (C, n): the share that each row has in the feature; of most forms it is 1 of one row


class TextForm(NamedTuple):
    """A text tower of any family.

    `causal`: a row sees those before it and is read at its end alone, so that prompts that begin alike share what they
    begin with (`text_tower.SharedPrefix`); then `ends` says where they end. Of other towers whole prompts are encoded.
    `tokens_follow_first`: representation tokens are hidden from the first row and see it alone, as behind a BOS.
    """

    width: int
    blocks: Sequence[nn.Module]
    freeze: Callable[[nn.Module, torch.dtype], Block]
    causal: bool
    embed: Callable[[Tensor], Tensor]  # ids (C, L) of any length -> (C, L, D)
    ends: Callable[[Tensor], Tensor]  # ids (C, L) -> the row that is read (C,)
    prompts: Callable[[Tensor], Prompts]  # ids (C, L) -> rows
    norm: Callable[[Tensor], Tensor]  # of rows that are read, before they are put together
    project: Callable[[Tensor], Tensor]  # (C, D) -> (C, E), not normalised
    tokens_follow_first: bool = False


def text_form(clip: "CLIP") -> TextForm:
    """The text tower of a model that `problem` has nothing against."""
    text = text_module(clip)
    if type(text).__name__ == "HFTextEncoder":
        from mmrl_core.clip.families.hugging_face import hugging_face_form

        return hugging_face_form(text)
    return _open_clip_form(text)


def text_module(clip: "CLIP") -> Any:
    """The module that carries the text tower: the CLIP itself, or the `text` of a CustomTextCLIP."""
    return getattr(clip, "text", clip)


def problem(clip: "CLIP") -> str | None:
    """Why a model's text tower cannot be adapted."""
    if not isinstance(clip, open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa):
        return f"{type(clip).__name__} is not a CLIP of open_clip"
    text = text_module(clip)
    if type(text).__name__ == "HFTextEncoder":
        from mmrl_core.clip.families.hugging_face import hugging_face_problem

        return hugging_face_problem(text)
    if not hasattr(text, "token_embedding") or not hasattr(text, "transformer"):
        return f"its text tower is a {type(text).__name__}"
    if _pool_type(text) not in POOLS or getattr(text, "use_pad_mask", False):
        return NOT_READ
    return of_other_kind(text.transformer.resblocks, "text")


def _pool_type(text: Any) -> str:
    return cast(str, getattr(text, "text_pool_type", None) or text.pool_type)


def _open_clip_form(text: Any) -> TextForm:
    """Of a CLIP or a TextTransformer."""
    class_row = getattr(text, "cls_emb", None) is not None
    ends = partial(_ends, _pool_type(text), getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None))
    return TextForm(
        width=text.token_embedding.embedding_dim,
        blocks=list(text.transformer.resblocks),
        freeze=freeze,
        causal=text.attn_mask is not None and not class_row and _pool_type(text) in ("argmax", "eos"),
        embed=partial(_embed, text),
        ends=ends,
        prompts=partial(_class_row_prompts, text) if class_row else partial(_prompts, text, ends),
        norm=text.ln_final,
        project=partial(_project, text),
        tokens_follow_first=text.attn_mask is not None,
    )


def _ends(pool_type: str, eos_id: int | None, ids: Tensor) -> Tensor:
    if pool_type == "argmax":
        return ids.argmax(dim=-1)
    if pool_type == "eos":
        return torch.eq(ids, cast(int, eos_id)).int().argmax(dim=-1)
    return ids.new_full((len(ids),), ids.shape[1] - 1 if pool_type == "last" else 0)


def _embed(text: Any, ids: Tensor) -> Tensor:
    return text.token_embedding(ids) + text.positional_embedding[: ids.shape[1]]


def _project(text: Any, x: Tensor) -> Tensor:
    projection = text.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _prompts(text: Any, ends: Callable[[Tensor], Tensor], ids: Tensor) -> Prompts:
    """Every row sees every row, padding included, so that nothing can be cut; of a causal tower what is before it."""
    end = ends(ids)
    length, causal = ids.shape[1], text.attn_mask is not None
    if causal:  # what is behind the last row that is read has no say
        length = int(end.max()) + 1
    sees = torch.ones(1, 1, length, length, dtype=torch.bool, device=ids.device).tril() if causal else None
    return Prompts(_embed(text, ids[:, :length]), sees, one_hot(end, length))


def _class_row_prompts(text: Any, ids: Tensor) -> Prompts:
    """CoCa's: the class row is the last, and what rows see is what open_clip's own mask says, which hides the padding
    shifted by one. Rows of padding that no row sees are cut."""
    x, mask = text._embeds(ids)
    mask = mask if mask.dim() == 3 else mask.expand(len(ids), -1, -1)
    sees = (mask == 0)[:: len(mask) // len(ids)]  # the same for all heads: (C, L + 1, L + 1)
    last = x.shape[1] - 1
    seen = sees.any(dim=0)[last].nonzero()  # by the class row, the longest prompt's padding included
    kept = torch.cat([torch.arange(int(seen.max()) + 1, device=ids.device), ids.new_tensor([last])]).unique()
    sees = sees[:, kept][:, :, kept]
    return Prompts(x[:, kept], sees[:, None], one_hot(ids.new_full((len(ids),), len(kept) - 1), len(kept)))


def one_hot(rows: Tensor, length: int) -> Tensor:
    """(C,) -> (C, length), 1 at each one's row."""
    return nn.functional.one_hot(rows, length).float()
