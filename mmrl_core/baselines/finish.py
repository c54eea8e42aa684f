"""What a trained adapter gets from few-shot validation: a probe where it helps, temperatures, and a threshold."""

import torch

from mmrl_core.baselines.held import Held
from mmrl_core.baselines.labelled import Labelled
from mmrl_core.baselines.linear_probe import fit_linear_probe
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.data.sets import ImageSet
from mmrl_core.evaluation.abstain import AbstainCard, abstain_card, confidence
from mmrl_core.evaluation.calibration import fusion, temperature
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_card import CalibrationCard
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.joint_logits import trained_logits
from mmrl_core.method.logit_weights import logit_weights


def finish(
    backbone: Backbone, adapter: Adapter, train: ImageSet, val: ImageSet, store: FeatureStore | None = None
) -> AbstainCard | None:
    """Give a trained adapter a linear probe, where its settings want one and validation images say that it helps, and
    temperatures; returns the threshold for "none of these", None without a validation image. No probe knows a class
    without a training image, so then there is none."""
    if not val.items:
        return None
    held = Held.of(backbone, adapter, val, store)
    if adapter.config.probe == "fused" and len(set(train.labels)) == len(train.class_names):
        _add_probe(backbone, adapter, train, held, store)
    return calibrate(adapter, held)


def _add_probe(backbone: Backbone, adapter: Adapter, train: ImageSet, held: Held, store: FeatureStore | None) -> None:
    known, others = Labelled.of(backbone, train, store), held.labelled()
    probe, strength = fit_linear_probe(known, others, len(train.class_names))
    weights = fusion(held.output.logits_fused.cpu(), probe(others.features), others.labels)
    if weights.head:
        adapter.head = probe.to(backbone.device)
        adapter.head_card = {"kind": "linear", "adapter_weight": weights.adapter, "head_weight": weights.head,
                             "images": len(others.labels), "inverse_regularization": strength}  # fmt: skip


def calibrate(adapter: Adapter | Baseline, held: Held) -> AbstainCard | None:
    """Give an adapter its temperatures, by what validation images give it; returns the threshold."""
    head = None if adapter.head is None else adapter.head(held.zero_shot)
    output, labels = held.output._replace(head=head), held.labels
    uncalibrated = logit_weights(adapter.head_card, None)
    columns = torch.arange(output.text_features.shape[0], device=output.logits_class.device)
    card: CalibrationCard = {
        "trained": temperature(trained_logits(output, columns, uncalibrated), labels),
        "other": temperature(output.logits_class, labels),
        "images": len(labels),
    }
    if isinstance(adapter, Adapter) and adapter.head_card:
        card["without_probe"] = temperature(output.logits_fused, labels)
    adapter.calibration = card
    return abstain_card(confidence(output).tolist())
