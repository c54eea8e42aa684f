"""The backbone of a process: loaded once, on the GPU where there is one, and the process settled for it."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import mmrl_core
from mmrl_core.files import sha256_file
from mmrl_core.sections import BackboneSection

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def backbone_of(section: BackboneSection):
    """The section's backbone. A reused worker, and a later call in this process, get the same one."""
    return _load(section.name, section.weights)


@functools.lru_cache(maxsize=1)
def _load(name: str, weights: str | None):
    import torch

    from mmrl_core.clip.backbone import load_backbone
    from mmrl_core.training.fit import settle_process

    backbone = load_backbone(name, weights, device="cuda" if torch.cuda.is_available() else "cpu")
    settle_process(backbone)
    return backbone


def weights_digest(section: BackboneSection) -> str | None:
    """sha256 of the file that the weights come from, told without PyTorch; None for a tag of open_clip, or no file."""
    bundled = Path(mmrl_core.__file__).parent / "assets" / f"{section.name}.json"
    if section.weights is None and bundled.exists():
        return json.loads(bundled.read_text())["sha256"]
    return sha256_file(section.weights) if section.weights and Path(section.weights).is_file() else None


def gpu_facts() -> list[Any]:
    """What settles, without asking PyTorch, whether it finds a GPU; to be compared on one machine."""
    return [[os.path.exists(path) for path in GPU_DEVICES], os.environ.get("CUDA_VISIBLE_DEVICES")]
