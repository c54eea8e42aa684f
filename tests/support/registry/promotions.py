"""Registering adapters of known quality on `digits`, and promoting them."""

import shutil

from flows.project.paths import RunKey
from flows.registry import promotion, versions
from flows.settings.params import Params
from flows.tracking import store
from mmrl_core.files import read_json, write_json

NAME, KEY = "digits-base-to-novel", RunKey("digits", "mmrlpp", 2, 1)
# No verdict here rests on speed: that of tests/core/evaluation/test_gate.py does.
PARAMS = Params(
    datasets=["digits"], methods=["mmrlpp"], shots=[2], seeds=[1], backbone={"name": "tiny"},
    registry={"latency": 1000},
)  # fmt: skip


def register(quality: str, class_names: list[str] | None = None) -> int:
    """Register an untrained adapter: `good` ones are as right as zero-shot, `bad` ones guess what base classes are."""
    import torch

    from mmrl_core.clip.backbone import load_backbone
    from mmrl_core.config import AdapterConfig
    from mmrl_core.method.adapter import Adapter, save_adapter

    backbone, seed = load_backbone("tiny"), {"good": 0, "bad": 1, "better": 2, "worse": 3}[quality]
    torch.manual_seed(seed)
    alpha = 1.0 if quality in ("good", "better") else 0.0  # 0: by the representation branch alone, which is random here
    config = AdapterConfig(method="mmrl", insertion_depth=backbone.depth, rep_dim=16, alpha=alpha)
    adapter = Adapter(config, backbone)
    pool = read_json("data/digits/pool/manifest.json", made_by="mmrl prepare")
    names = class_names or [pool["class_names"][label] for label in pool["base"]]
    card = {"class_names": names, "template": "a photo of the digit {}.", "settings": {}, "sources": {},
            "data": {"dataset": "digits", "digest": "d" * 64}}  # fmt: skip
    shutil.rmtree(KEY.model, ignore_errors=True)
    document = save_adapter(KEY.model, adapter, backbone, card)
    metrics = {"adapter_sha256": document["sha256"], "protocol": "base-to-novel", "preset": "published", "parts": [],
               "data_digest": pool["digest"], "validation": {}}  # fmt: skip
    write_json(KEY.results() / "metrics.json", metrics)
    return versions.register(PARAMS, KEY).version


def promote(**options) -> tuple[int, str]:
    decision = promotion.promote(PARAMS, "digits", **options)
    assert decision.moved == (decision.verdict in promotion.MOVES)
    return decision.version, decision.verdict


def crown(quality: str, class_names: list[str] | None = None) -> int:
    """Register an adapter as the champion, whatever the gate would say; its version."""
    version = register(quality, class_names)
    assert promote(version=version, force="test") == (version, "forced")
    return version


def aliases() -> dict[str, int]:
    return versions.versions_by_alias(store.connect(store.store_uri(PARAMS)), NAME)
