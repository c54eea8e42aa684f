"""What is to know of an image tower, and open_clip's own VisionTransformer read for it.

B images, n rows of the frozen tower (class token if there is one, then patches), D its width, D' the width of what is
read off it, E embedding width, S side of the square view in pixels.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmrl_core.clip.blocks import Block
from mmrl_core.clip.families.open_clip_blocks import freeze, of_other_kind
from mmrl_core.clip.families.pooling import Attention, ClassToken, FirstQuery, Mean, Pool
from mmrl_core.clip.openclip import VisionTransformer

if TYPE_CHECKING:
    from mmrl_core.clip.openclip import CLIP

PATCHES_DROPPED = "its image tower drops patches or has no projection"
NOT_SQUARE = "its images are not square"
UNREAD = "its image tower is read in a way that is not known here"


class Projection(NamedTuple):
    """x -> x W + b, from what is read to the embedding."""

    weight: Tensor  # (D', E)
    bias: Tensor | None  # (E,)

    def __call__(self, x: Tensor) -> Tensor:
        x = x @ self.weight
        return x if self.bias is None else x + self.bias


class ImageForm(NamedTuple):
    """An image tower of any family."""

    size: tuple[int, int]  # height and width of the view in pixels
    n_rows: int
    width: int
    pooled_width: int
    blocks: Sequence[nn.Module]
    freeze: Callable[[nn.Module, torch.dtype], Block]
    embed: Callable[[Tensor], Tensor]  # (B, 3, S, S) -> input of the first block (B, n, D)
    pool: Pool
    projection: Callable[[], Projection]


def image_form(clip: "CLIP") -> ImageForm:
    """The image tower of a model that `problem` has nothing against."""
    visual = clip.visual
    if isinstance(visual, VisionTransformer):
        return _open_clip_form(visual)
    from mmrl_core.clip.families.timm_images import timm_form

    return timm_form(visual)


def problem(clip: "CLIP") -> str | None:
    """Why a model's image tower cannot be adapted."""
    visual = getattr(clip, "visual", None)
    if isinstance(visual, VisionTransformer):
        found = _open_clip_problem(visual)
    elif type(visual).__name__ == "TimmModel":
        from mmrl_core.clip.families.timm_images import timm_problem

        found = timm_problem(cast(nn.Module, visual))
    else:
        return f"its image tower is a {type(visual).__name__}, not a ViT"
    size = cast(Any, visual).image_size
    return found or (NOT_SQUARE if size[0] != size[1] else None)


def _open_clip_problem(visual: VisionTransformer) -> str | None:
    if not isinstance(visual.patch_dropout, nn.Identity) or visual.proj is None:
        return PATCHES_DROPPED
    if visual.pool_type not in ("tok", "avg") or (visual.attn_pool is not None and visual.pool_type != "tok"):
        return UNREAD
    return of_other_kind(visual.transformer.resblocks, "image")


def _open_clip_form(visual: VisionTransformer) -> ImageForm:
    n_rows, width = visual.positional_embedding.shape
    return ImageForm(
        size=visual.image_size,
        n_rows=n_rows,
        width=width,
        pooled_width=visual.proj.shape[0],
        blocks=list(visual.transformer.resblocks),
        freeze=freeze,
        embed=visual._embeds,
        pool=_open_clip_pool(visual),
        projection=lambda: Projection(visual.proj.detach(), None),
    )


def _open_clip_pool(visual: VisionTransformer) -> Pool:
    nothing = nn.Identity()
    if visual.attn_pool is not None:
        return Attention(nothing, FirstQuery(visual.attn_pool), visual.ln_post)
    if visual.pool_type == "tok":
        return ClassToken(visual.ln_post)
    before, after = (nothing, visual.ln_post) if visual.final_ln_after_pool else (visual.ln_post, nothing)
    return Mean(1, before, after)
