"""The published code's step by the formulas of mmrl_core/estimate/costs.py, and the shape of what is measured.

The published step: two whole image passes (zero-shot and adapted), a 77-token text pass (77 + K in the last n layers)
for every class, and backward through the last n layers of both towers.
"""

from benchmarks.support.cases import Case
from mmrl_core.estimate import costs
from mmrl_core.estimate.costs import (
    BACKWARD,
    FORWARD,
    Cost,
    adapted_images,
    embedding,
    frozen_images,
    heads_of_ours,
    product,
    shared_prefix,
    suffixes,
    whole,
)
from mmrl_core.method.model import AdaptedCLIP

__all__ = [
    "BACKWARD", "FORWARD", "Cost", "Shape", "adapted_images", "frozen_images", "heads_of_ours", "our_step",
    "published_step", "shared_prefix", "suffixes",
]  # fmt: skip


class Shape(costs.Shape):
    """Of a case."""

    @classmethod
    def of(cls, case: Case) -> "Shape":
        backbone, config, visual = case.backbone, case.config, case.backbone.visual
        return cls(
            case.method, case.batch, case.classes, backbone.depth - config.insertion_depth + 1, config.n_tokens,
            len(backbone.image_blocks), backbone.image_width, backbone.image_tokens, visual.conv1.weight[0].numel(),
            len(backbone.text_blocks), backbone.text_width, backbone.text.positional_embedding.shape[0],
            backbone.embed_dim, config.rep_dim, (config.residual_rank, config.projection_rank),
        )  # fmt: skip


def published_step(s: Shape) -> Cost:
    """One step of the published code, which tests/oracle/ repeats."""
    total = embedding(s).times(2) + whole(s.image_width, s.batch, s.image_tokens).times(s.image_layers)
    for width, count, length, layers in (
        (s.image_width, s.batch, s.image_tokens, s.image_layers),
        (s.text_width, s.classes, s.context, s.text_layers),
    ):
        total += whole(width, count, length).times(layers - s.n)
        total += whole(width, count, length + s.k).times(s.n) + whole(width, count, length + s.k, BACKWARD).times(s.n)
    return total + heads(s)


def heads(s: Shape) -> Cost:
    """Projections and logits of both branches, and the tokens from the shared space; backward included."""
    logits = product(s.batch, s.embed, s.classes).times(2 * 3)
    projections = product(s.batch, s.image_width, s.embed).times(1 + 2) + product(
        s.classes, s.text_width, s.embed
    ).times(2)
    return logits + projections + tokens(s) + rep_projection(s)


def tokens(s: Shape) -> Cost:
    """R_i of every insertion layer; the published MMRL++ forms W + A_i B_i first."""
    total = Cost()
    for width in (s.image_width, s.text_width):
        total += product(s.k, s.rep_dim, width).times(3 * s.n)
        if s.method == "mmrlpp":
            total += product(width, s.ranks[0], s.rep_dim).times(3 * s.n)
    return total


def rep_projection(s: Shape) -> Cost:
    """P_r and its product with the slots' mean; the published MMRL++ forms visual.proj + A B first."""
    total = product(s.batch, s.image_width, s.embed).times(3)
    return total + product(s.image_width, s.ranks[1], s.embed).times(3 if s.method == "mmrlpp" else 0)


def our_step(s: costs.Shape, model: AdaptedCLIP, cached: bool) -> Cost:
    """One step of ours; `cached`: trunk and zero-shot features are given."""
    text = model.text_tower
    return costs.our_step(s, text.packings, text.prefix.shape[1] + s.k, cached)
