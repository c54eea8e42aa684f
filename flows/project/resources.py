"""What a stage's process has once: the backbone, the store of frozen features; and what tells, without PyTorch, which
weights and GPU that will be."""

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmrl_core
from flows.project.paths import FEATURES
from flows.settings.params import Params
from flows.settings.resolve import explicit_values
from flows.settings.sections import BackboneSection
from mmrl_core.clip.weights.weight_files import folders_digest
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file

if TYPE_CHECKING:
    import torch

    from mmrl_core.clip.backbone import Backbone
    from mmrl_core.clip.feature_store import FeatureStore

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
DEPTH = "adapter.insertion_depth"


def backbone_of(section: BackboneSection, device: str = "auto") -> "Backbone":
    """The section's backbone on a device, by default on the GPU where there is one. Later calls, as in a reused worker,
    get the same one. Raises UserError for a device that is not there."""
    return _load(section.name, section.weights, device)


def backbone_for(params: Params) -> "Backbone":
    """The backbone of the settings, on their device."""
    return backbone_of(params.backbone, device_name(params))


def device_name(params: Params) -> str:
    """What `device_here` takes: on a cluster `auto`, since `cluster.gpus_per_worker` says what its workers have."""
    return "auto" if params.cluster.is_distributed else params.device


def refuse_absent(params: Params) -> None:
    """UserError where the settings' device is not there, before work that they are to go on with. PyTorch is loaded
    only to look for a GPU that they name."""
    if (name := device_name(params)) not in ("auto", "cpu"):
        device_here(name)


def trial_backbone(params: Params) -> "Backbone":
    """The backbone of the settings in a trial, which sees the GPUs that `cluster.gpus_per_trial` gives it."""
    return backbone_of(params.backbone, "cpu" if params.device == "cpu" else "auto")


def device_here(name: str) -> "torch.device":
    """The device of `device` in params.yaml. Raises UserError for one that is not there."""
    from mmrl_core.adapting.devices import device_of

    try:
        return device_of(name)
    except UserError:
        raise UserError(f"device is {name}, and PyTorch finds none here; set device to auto or cpu") from None


def open_store(params: Params, stage: str) -> "FeatureStore | None":
    """The FeatureStore that `stage` keeps frozen features in, as `features.cache` says; None: it keeps none.

    Training reads what the search has kept: it sees the same views.
    """
    keeps = params.features.cache in ("always", stage)
    if not keeps and (params.features.cache, stage) != ("tune", "train"):
        return None
    from mmrl_core.clip.feature_store import FeatureStore

    return FeatureStore(FEATURES.absolute(), params.features.budget_gb * 1e9, _least_depth(params), keeps)


def weights_digest(section: BackboneSection) -> str | None:
    """sha256 of the file that the weights come from, without PyTorch, of a folder's files together; None for a tag of
    open_clip, a repository, or no file."""
    if section.weights is None and (digest := folders_digest(section.name)):
        return digest
    bundled = Path(mmrl_core.__file__).parent / "assets" / f"{section.name}.json"
    if section.weights is None and bundled.exists():
        return json.loads(bundled.read_text()).get("sha256")  # there are other files as well
    return sha256_file(section.weights) if section.weights and Path(section.weights).is_file() else None


def gpu_facts(device: str = "auto") -> list[Any]:
    """What decides on which device PyTorch computes, without importing it; comparable on one machine only."""
    if device != "auto":
        return [device]
    return [[os.path.exists(path) for path in GPU_DEVICES], os.environ.get("CUDA_VISIBLE_DEVICES")]


@functools.lru_cache(maxsize=1)
def _load(name: str, weights: str | None, on: str) -> "Backbone":
    from mmrl_core.clip.backbone import load_backbone
    from mmrl_core.estimate.fits import refuse_heavy
    from mmrl_core.training.process import settle_process

    device = device_here(on)
    refuse_heavy(name, device)
    backbone = load_backbone(name, weights, device=device)
    settle_process(backbone)
    return backbone


def _least_depth(params: Params) -> int | None:
    """The least insertion depth that the search tries; None where the depth is not searched."""
    if not params.search.enabled or DEPTH in explicit_values(params):
        return None
    return min(map(int, params.search.space.get(DEPTH, {}).get("choice", [])), default=None)
