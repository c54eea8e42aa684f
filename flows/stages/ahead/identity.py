"""What the bytes of a run's outputs depend on, found out without PyTorch; whether the present outputs are of that."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flows.project import paths
from flows.project.metrics import read_metrics
from flows.project.paths import RunKey
from flows.project.resources import gpu_facts, weights_digest
from flows.settings.params import Params
from flows.settings.resolve import resolve, settings_by_key, target_beta, unflipped
from flows.stages.ahead.ready import ReadyOutput
from flows.stages.train import read_search
from mmrl_core import DATA_VERSION, EVALUATION_VERSION, METHOD_VERSION
from mmrl_core.data.shards import read_manifest
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json, sha256_file
from mmrl_core.method.adapter_card import TENSORS, read_unverified_card
from mmrl_core.protocols import PROTOCOLS

PREDICTIONS = "predictions.parquet"
PACKAGES = ("numpy", "open_clip_torch", "pillow", "pyarrow", "safetensors", "scikit-learn", "scipy", "torch",
            "torchvision")  # fmt: skip


def model(params: Params, key: RunKey) -> ReadyOutput:
    """The place of the run's adapter if it is made ahead. Raises UserError where data or search are missing."""
    facts = {
        **_common(params, key),
        **_material(params, key),
        "adapter": params.adapter.model_dump(),
        "train": params.train.model_dump(),
        "unflipped": unflipped(params, key.dataset),
        "preset": params.preset,
        "gpu": gpu_facts(params.device),  # which precision `auto` is depends on it
    }
    return ReadyOutput(key.model, _digest(facts))


def results(params: Params, key: RunKey, target: str | None, adapter: Path) -> ReadyOutput:
    """The place of the evaluation of the adapter in the folder `adapter`, if it is made ahead. Raises UserError where
    adapter or data are missing."""
    cluster = params.cluster
    facts = {
        **_common(params, key),
        "target": target,
        "card": read_unverified_card(adapter, made_by=key.command("train")),
        "tensors": sha256_file(adapter / TENSORS) if (adapter / TENSORS).exists() else None,
        "data": read_manifest(paths.pool(target or key.dataset))["digest"],
        "protocol": params.data.protocol,
        "preset": params.preset,
        "beta": target_beta(params, key.method, target) if target else None,
        "gpu": cluster.gpus_per_worker > 0 if cluster.is_distributed else gpu_facts(params.device),
    }
    return ReadyOutput(key.results(target), _digest(facts))


def is_trained(params: Params, key: RunKey) -> bool:
    """Whether the adapter in models/ is there and of these settings and data. Raises UserError as `model` does."""
    material, folder = _material(params, key), key.model
    try:
        card = read_unverified_card(folder, made_by="mmrl train", keys=("settings", "sources", "data", "backbone"))
    except UserError:
        return False
    # The preset's insertion depth is half of the backbone's depth, which is not known without PyTorch: with twice the
    # card's insertion depth the preset gives what the card says.
    depth = 2 * card["settings"].get("adapter.insertion_depth", 1)
    settings = resolve(params, key.dataset, key.method, key.seed, depth, material["choice"])
    values = settings_by_key(settings)
    if settings.train.precision == "auto":
        del values["train.precision"]
        card["settings"].pop("train.precision", None)
    recorded = [card["settings"], card["sources"], card.get("training"), card.get("template"),
                card.get("method_version"), card["data"].get("digest"), card["backbone"]["name"],
                card["backbone"]["weights"]]  # fmt: skip
    wanted = [values, settings.sources, material["training"], material["template"], METHOD_VERSION,
              material["data"], params.backbone.name, params.backbone.weights]  # fmt: skip
    weights = weights_digest(params.backbone) in (None, card["backbone"].get("file_sha256"))
    return recorded == wanted and weights and (folder / TENSORS).exists()


def is_evaluated(params: Params, key: RunKey, target: str | None, adapter: Path) -> bool:
    """Whether the results in place are of that adapter, these settings and this data."""
    try:
        metrics = read_metrics(key.results(target))
    except UserError:
        return False
    wanted = {
        **key._asdict(),
        "target": target or key.dataset,
        "protocol": params.data.protocol,
        "preset": params.preset,
        "adapter_sha256": read_unverified_card(adapter, made_by="mmrl train").get("sha256"),
        "data_digest": read_manifest(paths.pool(target or key.dataset))["digest"],
    }
    return wanted.items() <= metrics.items() and (key.results(target) / PREDICTIONS).exists()


def _common(params: Params, key: RunKey) -> dict[str, Any]:
    return {
        **key._asdict(),
        "backbone": params.backbone.model_dump(),
        "weights_sha256": weights_digest(params.backbone),
        "versions": [METHOD_VERSION, DATA_VERSION, EVALUATION_VERSION, *map(_version, PACKAGES)],
    }


def _material(params: Params, key: RunKey) -> dict[str, Any]:
    """What a training takes beside the settings: data, and template and choice of the search."""
    manifest = read_manifest(key.few_shot)
    search = read_search(key, manifest["templates"])
    return {
        "data": manifest["digest"],
        "template": search["template"],
        "choice": search["choice"] if params.search.enabled else {},
        "training": PROTOCOLS[params.data.protocol].training,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(facts)).hexdigest()[:16]
