"""Registering an adapter of every kind on `digits`: one with a probe, and baselines, fitted on two shots."""

import shutil

from flows.registry import versions
from mmrl_core.baselines.finish import calibrate
from mmrl_core.baselines.fit import fit_baseline
from mmrl_core.baselines.held import Held
from mmrl_core.baselines.labelled import Labelled
from mmrl_core.baselines.linear_probe import fit_linear_probe
from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.config import AdapterConfig, BaselineConfig
from mmrl_core.data.sets import ImageSet, read_set
from mmrl_core.files import read_json, write_json
from mmrl_core.method.adapter import Adapter, save_adapter
from tests.support.registry.promotions import KEY, PARAMS

PROBED = "mmrl+probe"
TEMPLATE = "a photo of the digit {}."


def register(kind: str) -> int:
    """Fit it, register it as the run of promotions.py, and give its version."""
    document = save(kind)
    pool = read_json("data/digits/pool/manifest.json", made_by="mmrl prepare")
    metrics = {"adapter_sha256": document["sha256"], "protocol": "base-to-novel", "preset": "published", "parts": [],
               "data_digest": pool["digest"], "validation": {}}  # fmt: skip
    write_json(KEY.results() / "metrics.json", metrics)
    return versions.register(PARAMS, KEY).version


def save(kind: str) -> dict:
    """The card of what then lies where the run's adapter lies."""
    backbone = load_backbone("tiny")
    train, val = (read_set(KEY.few_shot, split, ("base",), TEMPLATE) for split in ("train", "val"))
    if kind == PROBED:
        adapter = with_probe(backbone, train, val)
        abstain = calibrate(adapter, Held.of(backbone, adapter, val))
    else:
        adapter, abstain = fit_baseline(backbone, BaselineConfig(method=kind), train, val, seed=1)
    card = {"class_names": train.class_names, "template": TEMPLATE, "settings": {}, "sources": {}, "abstain": abstain,
            "data": {"dataset": "digits", "digest": "d" * 64}}  # fmt: skip
    shutil.rmtree(KEY.model, ignore_errors=True)
    return save_adapter(KEY.model, adapter, backbone, card)


def with_probe(backbone: Backbone, train: ImageSet, val: ImageSet) -> Adapter:
    """An untrained adapter, which is as right as zero-shot, with a probe whatever validation says of it."""
    config = AdapterConfig(method="mmrl", insertion_depth=backbone.depth, rep_dim=16, alpha=1.0, probe="fused")
    adapter = Adapter(config, backbone)
    known, held = (Labelled.of(backbone, data) for data in (train, val))
    adapter.head, strength = fit_linear_probe(known, held, len(train.class_names))
    adapter.head_card = {"kind": "linear", "adapter_weight": 0.2, "head_weight": 1.0, "images": len(val.items),
                         "inverse_regularization": strength}  # fmt: skip
    return adapter
