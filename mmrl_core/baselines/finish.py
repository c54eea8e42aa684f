"""What a trained adapter gets from few-shot validation: a probe where it helps, temperatures, and a threshold."""

import torch

from mmrl_core.baselines.labelled import Labelled
from mmrl_core.baselines.linear_probe import fit_linear_probe
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import test_views
from mmrl_core.evaluation.abstain import AbstainCard, abstain_card, confidence
from mmrl_core.evaluation.calibration import fusion, temperature
from mmrl_core.evaluation.scores import BATCH_SIZE, batched
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_card import CalibrationCard
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.joint_logits import trained_logits
from mmrl_core.method.logit_weights import logit_weights
from mmrl_core.method.model import AdaptedCLIP, Output


def finish(
    backbone: Backbone, adapter: Adapter, train: ImageSet, val: ImageSet, store: FeatureStore | None = None
) -> AbstainCard | None:
    """Give a trained adapter a linear probe, where its settings want one and validation images say that it helps, and
    temperatures; returns the threshold for "none of these", None without a validation image. No probe knows a class
    without a training image, so then there is none."""
    if adapter.config.probe == "fused" and val.items and len(set(train.labels)) == len(train.class_names):
        _add_probe(backbone, adapter, train, val, store)
    return calibrate(backbone, adapter, val)


def _add_probe(
    backbone: Backbone, adapter: Adapter, train: ImageSet, val: ImageSet, store: FeatureStore | None
) -> None:
    known, held = (Labelled.of(backbone, data, store) for data in (train, val))
    probe, strength = fit_linear_probe(known, held, len(train.class_names))
    own = _outputs(backbone, adapter, val).logits_fused.cpu()
    weights = fusion(own, probe(held.features), held.labels)
    if weights.head:
        adapter.head = probe.to(backbone.device)
        adapter.head_card = {"kind": "linear", "adapter_weight": weights.adapter, "head_weight": weights.head,
                             "images": len(val.items), "inverse_regularization": strength}  # fmt: skip


def calibrate(backbone: Backbone, adapter: Adapter | Baseline, val: ImageSet) -> AbstainCard | None:
    """Give an adapter its temperatures; returns the threshold. Without a validation image there is neither."""
    if not val.items:
        return None
    output, labels = _outputs(backbone, adapter, val), torch.tensor(val.labels)
    uncalibrated = logit_weights(adapter.head_card, None)
    columns = torch.arange(len(val.class_names), device=backbone.device)
    card: CalibrationCard = {
        "trained": temperature(trained_logits(output, columns, uncalibrated), labels),
        "other": temperature(output.logits_class, labels),
        "images": len(val.items),
    }
    if isinstance(adapter, Adapter) and adapter.head_card:
        card["without_probe"] = temperature(output.logits_fused, labels)
    adapter.calibration = card
    return abstain_card(confidence(output).tolist())


@torch.inference_mode()
def _outputs(backbone: Backbone, adapter: Adapter | Baseline, val: ImageSet) -> Output:
    """Of all validation images at once."""
    model = AdaptedCLIP(backbone, adapter, val.class_names, val.template)
    text = model.text_features()
    parts = [
        model(test_views([val.images[row] for row in rows], backbone.view_settings).to(backbone.device), text)
        for rows in batched(range(len(val.items)), BATCH_SIZE)
    ]
    by_class, by_rep, fused, f_c, f_r = (
        torch.cat(column) for column in zip(*(part[:5] for part in parts), strict=True)
    )
    heads = [part.head for part in parts if part.head is not None]
    return Output(by_class, by_rep, fused, f_c, f_r, text, torch.cat(heads) if heads else None)
