"""Fit a baseline: from frozen features, in seconds."""

from mmrl_core.baselines.finish import calibrate
from mmrl_core.baselines.held import Held
from mmrl_core.baselines.labelled import Labelled
from mmrl_core.baselines.linear_probe import fit_linear_probe
from mmrl_core.baselines.tip_adapter import fit_image_cache
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.config import BaselineConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.errors import UserError
from mmrl_core.evaluation.abstain import AbstainCard
from mmrl_core.method.adapter_card import HeadCard
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.heads import Head


def fit_baseline(
    backbone: Backbone, config: BaselineConfig, train: ImageSet, val: ImageSet, seed: int,
    store: FeatureStore | None = None,
) -> tuple[Baseline, AbstainCard | None]:  # fmt: skip
    """A baseline of the classes of `train`, what it chooses chosen on `val`, which may be without an image; and its
    threshold for "none of these". `seed` orders the images of Tip-Adapter's fine-tuning. Raises UserError without a
    training image."""
    if not train.items:
        raise UserError("there is no training image; prepare at least one shot of one class")
    known, held = (Labelled.of(backbone, data, store) for data in (train, val))
    head, card = _head(backbone, config, known, held, train, seed)
    baseline = Baseline(config, backbone, head, card).to(backbone.device)
    return baseline, calibrate(baseline, Held.of_features(backbone, baseline, held, val)) if val.items else None


def _head(
    backbone: Backbone, config: BaselineConfig, known: Labelled, val: Labelled, train: ImageSet, seed: int
) -> tuple[Head, HeadCard]:
    images = len(val.labels)
    if config.method == "linear_probe":
        probe, strength = fit_linear_probe(known, val, len(train.class_names))
        return probe, {"kind": "linear", "adapter_weight": 0.0, "head_weight": 1.0, "images": images,
                       "inverse_regularization": strength}  # fmt: skip
    text = backbone.encode_text(train.class_names, train.template).cpu()
    cache, residual = fit_image_cache(known, val, text, tuned=config.method == "tip_adapter_f", seed=seed)
    rows = cache.values.sum(0).int().tolist()
    return cache, {"kind": "cache", "adapter_weight": 1.0, "head_weight": residual, "images": images,
                   "sharpness": cache.sharpness, "rows": rows}  # fmt: skip
