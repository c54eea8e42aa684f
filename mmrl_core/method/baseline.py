"""What the methods are compared with: a classifier of frozen features for trained classes, zero-shot for others.

A baseline stands where an adapter stands: it has files, is registered, exported and served as one.
"""

from torch import Tensor, nn

from mmrl_core.clip.backbone import Backbone, check_measures, measures
from mmrl_core.config import BaselineConfig
from mmrl_core.method.adapter_card import CalibrationCard, HeadCard
from mmrl_core.method.heads import Head
from mmrl_core.method.logit_weights import LogitWeights, logit_weights


class Baseline(nn.Module):
    """A head, and nothing in the towers.

    Of its logits for trained classes, `adapter_weight` is the share of the zero-shot ones: 0 of a linear probe.
    """

    n_insert = 1  # layers that are no trunk: the last one, which gives the features

    def __init__(self, config: BaselineConfig, backbone: Backbone, head: Head, head_card: HeadCard):
        super().__init__()
        self.config, self.made_for = config, measures(backbone)
        self.head, self.head_card = head, head_card
        self.calibration: CalibrationCard | None = None

    def fused(self, by_class: Tensor, by_rep: Tensor) -> Tensor:
        """Zero-shot logits (B, C): there is one branch."""
        return by_class

    @property
    def weights(self) -> LogitWeights:
        return logit_weights(self.head_card, self.calibration)

    @property
    def n_trainable(self) -> int:
        """Numbers that the head holds."""
        return sum(tensor.numel() for tensor in self.head.state_dict().values())

    def check_fits(self, backbone: Backbone) -> None:
        """Raise UserError unless it was made for a backbone of these widths and this depth."""
        check_measures(self.made_for, backbone)
