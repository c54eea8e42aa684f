"""Weights and temperatures in one."""

from mmrl_core.method.logit_weights import PLAIN, LogitWeights, logit_weights, without_probe

HEAD = {"kind": "linear", "adapter_weight": 0.5, "head_weight": 1.0, "images": 8}
CALIBRATION = {"trained": 2.0, "other": 4.0, "images": 8}


def test_a_temperature_divides_both_families_of_trained_classes_and_the_other_the_class_logits():
    assert logit_weights(HEAD, CALIBRATION) == LogitWeights(adapter=0.25, head=0.5, other=0.25)
    assert logit_weights(HEAD, None) == LogitWeights(adapter=0.5, head=1.0, other=1.0)
    assert logit_weights(None, CALIBRATION) == LogitWeights(adapter=0.5, head=0.0, other=0.25)


def test_without_head_and_temperatures_logits_are_as_they_are():
    assert logit_weights(None, None) == without_probe(None) == PLAIN == LogitWeights(1.0, 0.0, 1.0)


def test_an_adapter_whose_probe_is_left_out_has_a_temperature_of_its_own():
    assert without_probe({**CALIBRATION, "without_probe": 8.0}) == LogitWeights(0.125, 0.0, 0.25)
    assert without_probe(CALIBRATION) == LogitWeights(0.5, 0.0, 0.25)
