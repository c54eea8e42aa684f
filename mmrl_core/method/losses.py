"""The training loss as named terms, summed once."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mmrl_core.method.model import Output


class LossTerms(NamedTuple):
    """Scalars, or one of each for every run (R,), weights already applied; `total` is their sum."""

    class_ce: Tensor
    rep_ce: Tensor
    image_reg: Tensor
    text_reg: Tensor

    @property
    def total(self) -> Tensor:
        return self.class_ce + self.rep_ce + self.image_reg + self.text_reg


def mmrl_loss(
    out: Output, labels: Tensor, zero_shot_image: Tensor, zero_shot_text: Tensor, *, alpha: float | Tensor,
    reg_weight: float | Tensor,
) -> LossTerms:  # fmt: skip
    """Cross-entropies of both branches, and the cosine distance of the adapted features to the frozen ones.

    labels (B,), zero_shot_image (B, E) and zero_shot_text (C, E), both L2-normalised; of R runs all with (R,) before
    these, and weights (R,).
    """
    return LossTerms(
        class_ce=alpha * _cross_entropy(out.logits_class, labels),
        rep_ce=(1 - alpha) * _cross_entropy(out.logits_rep, labels),
        image_reg=reg_weight * (1 - (out.image_features * zero_shot_image).sum(dim=-1).mean(dim=-1)),
        text_reg=reg_weight * (1 - (out.text_features * zero_shot_text).sum(dim=-1).mean(dim=-1)),
    )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over a batch: (B, C) against (B,) to a scalar, (R, B, C) against (R, B) to (R,)."""
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(dim=-1)
