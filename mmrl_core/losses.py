"""The training loss as named terms, summed once."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LossTerms(NamedTuple):
    """Scalars, weights already applied; `total` is their sum."""

    class_ce: Tensor
    rep_ce: Tensor
    image_reg: Tensor
    text_reg: Tensor

    @property
    def total(self) -> Tensor:
        return self.class_ce + self.rep_ce + self.image_reg + self.text_reg


def mmrl_loss(
    out, labels: Tensor, zero_shot_image: Tensor, zero_shot_text: Tensor, *, alpha: float, reg_weight: float
) -> LossTerms:
    """Cross-entropies of both branches, and the cosine distance of the adapted features to the frozen ones.

    labels (B,), zero_shot_image (B, E) and zero_shot_text (C, E), both L2-normalised.
    """
    return LossTerms(
        class_ce=alpha * F.cross_entropy(out.logits_class, labels),
        rep_ce=(1 - alpha) * F.cross_entropy(out.logits_rep, labels),
        image_reg=reg_weight * (1 - (out.image_features * zero_shot_image).sum(dim=-1).mean()),
        text_reg=reg_weight * (1 - (out.text_features * zero_shot_text).sum(dim=-1).mean()),
    )
