"""Tiny real CLIPs and adapters for tests."""

import functools

import torch

from mmrl_core.clip.backbone import Backbone, new_clip
from mmrl_core.config import AdapterConfig
from mmrl_core.method.adapter import Adapter

CLASSES = ["dog", "polar bear", "red_panda", "dog house", "cat", "a very long name of a class"]


@functools.cache
def small_backbone(
    image_layers: int = 4, text_layers: int = 4, image_width: int = 64, text_width: int = 48, seed: int = 0,
    image_size: int = 32, quick_gelu: bool = False,
) -> Backbone:  # fmt: skip
    """A random CLIP of 16-pixel patches; weights large enough for features to differ."""
    torch.manual_seed(seed)
    clip = new_clip(
        {
            "embed_dim": 32,
            "vision_cfg": {
                "layers": image_layers, "width": image_width, "head_width": 16, "patch_size": 16,
                "image_size": image_size,
            },
            "text_cfg": {"width": text_width, "heads": 4, "layers": text_layers},
            "quick_gelu": quick_gelu,
        }
    )  # fmt: skip
    torch.nn.init.normal_(clip.token_embedding.weight, std=0.5)
    return Backbone.from_clip(clip, name="small")


def small_adapter(backbone: Backbone, method: str = "mmrl", seed: int = 0, **settings) -> Adapter:
    """An adapter whose every tensor is random, so that no path is hidden by a zero."""
    defaults = {
        "insertion_depth": 2,
        "n_tokens": 3,
        "rep_dim": 24,
        "residual_rank": 2,
        "projection_rank": 5,
        "beta": 0.6,
    }
    torch.manual_seed(seed)
    adapter = Adapter(AdapterConfig(method=method, **{**defaults, **settings}), backbone)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return adapter


def random_images(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
