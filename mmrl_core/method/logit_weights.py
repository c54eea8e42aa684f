"""How an adapter's families of logits are weighed: its own and its head's for trained classes, and those of others."""

from typing import NamedTuple

from mmrl_core.method.adapter_card import CalibrationCard, HeadCard


class LogitWeights(NamedTuple):
    """What each family of logits counts: the adapter's and the head's of trained classes, and those of others."""

    adapter: float = 1.0
    head: float = 0.0
    other: float = 1.0


def logit_weights(head: HeadCard | None, calibration: CalibrationCard | None) -> LogitWeights:
    """Weights and temperatures in one."""
    trained, other = (calibration["trained"], calibration["other"]) if calibration else (1.0, 1.0)
    own, of_head = (head["adapter_weight"], head["head_weight"]) if head else (1.0, 0.0)
    return LogitWeights(own / trained, of_head / trained, 1 / other)


def without_probe(calibration: CalibrationCard | None) -> LogitWeights:
    """Weights of an adapter whose probe is left out, with the temperature that it has then."""
    if not calibration:
        return PLAIN
    return LogitWeights(1 / calibration.get("without_probe", calibration["trained"]), 0.0, 1 / calibration["other"])


PLAIN = LogitWeights()
