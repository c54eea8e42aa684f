"""Abstaining: below which confidence an image is called "none of these".

The confidence of an image is the cosine of its class feature f_c with the nearest class feature w. It tells images of
trained digits from those of other digits, letters and objects with AUROC 0.97, 0.98 and 1.00, as the top fused logit
does; the top probability with 0.86, 0.85 and 0.83, since softmax shares 1 among the classes however far off all are.
None of them tells base objects well from novel ones (0.59; the probability 0.70). Unlike the fused logit's, the level
of this cosine is much the same for any list of classes.

The threshold promises one thing: at least the share `keep` of the n validation images reaches it. Where k of them do,
the share k / (n + 1) of new images like them is expected to: 90% where 19 of 20 did. It promises nothing of other
images: how many of them reach it depends on how different they are. B images, C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmrl_core.clip import LOGIT_SCALE
from mmrl_core.errors import UserError
from mmrl_core.method.adapter_card import AbstainCard, AdapterCard

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl_core.method.model import Output

CONFIDENCE = "class_cosine"
KEEP = 0.95
ROUNDING = 1e-5  # of a cosine: another machine's sums have another order


def confidence(output: "Output") -> "Tensor":
    """(B,): the largest cosine of f_c with a class, in [-1, 1]."""
    return output.logits_class.amax(dim=-1) / LOGIT_SCALE


def is_below(confidence: float, threshold: float) -> bool:
    """Whether to abstain: below the threshold by more than rounding, for it is the confidence of one of the images that
    are to be kept, which on another machine, or in another batch, has other last bits."""
    return confidence < threshold - ROUNDING


def threshold(confidence: Sequence[float], keep: float) -> float:
    """The largest value that at least the share `keep` of the confidences, in (0, 1], reaches.

    Raises ValueError without a confidence and for a share out of range.
    """
    if not len(confidence) or not 0 < keep <= 1:
        raise ValueError(f"cannot keep {keep} of {len(confidence)} images")
    n = len(confidence)
    kept = next(count for count in range(1, n + 1) if count / n >= keep)
    return sorted(confidence, reverse=True)[kept - 1]


def abstain_card(confidences: Sequence[float], keep: float = KEEP) -> AbstainCard | None:
    """What adapter.json says under "abstain", from validation images of the trained classes; None without an image."""
    if not confidences:
        return None
    return {
        "confidence": CONFIDENCE,
        "keep": keep,
        "threshold": threshold(confidences, keep),
        "images": len(confidences),
    }


def card_threshold(card: AdapterCard) -> float:
    """The threshold in an adapter's card. Raises UserError when it has none, or one of another confidence."""
    entry = card.get("abstain")
    if not entry or entry.get("confidence") != CONFIDENCE:
        raise UserError(
            f"the adapter's adapter.json has no abstain.threshold of {CONFIDENCE}; train it again on data with "
            f"validation images, or give --threshold"
        )
    return entry["threshold"]
