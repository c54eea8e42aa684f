"""The backbone of a process: loaded once, on the GPU where there is one, and the process settled for it."""

import functools

from mmrl_core.sections import BackboneSection


def backbone_of(section: BackboneSection):
    """The section's backbone. A reused worker, and a later call in this process, get the same one."""
    return _load(section.name, section.weights)


@functools.lru_cache(maxsize=1)
def _load(name: str, weights: str | None):
    import torch

    from mmrl_core.backbone import load_backbone
    from mmrl_core.training import settle_process

    backbone = load_backbone(name, weights, device="cuda" if torch.cuda.is_available() else "cpu")
    settle_process(backbone)
    return backbone
