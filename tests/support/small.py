"""Tiny real CLIPs and adapters for tests."""

import functools

import torch

from mmrl_core.clip.backbone import Backbone, new_clip
from mmrl_core.config import AdapterConfig, BaselineConfig
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_card import HeadCard
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.heads import Head, ImageCache, LinearProbe

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


def small_head(backbone: Backbone, kind: str, n_classes: int) -> tuple[Head, HeadCard]:
    """A random probe, or a random cache of one image of the first class, two of the second and so on."""
    random = torch.Generator().manual_seed(n_classes)
    if kind == "linear":
        probe = LinearProbe(torch.randn(n_classes, backbone.embed_dim, generator=random) * 20,
                            torch.randn(n_classes, generator=random))  # fmt: skip
        return probe, {"kind": "linear", "adapter_weight": 0.35, "head_weight": 1.0, "images": 8,
                       "inverse_regularization": 10.0}  # fmt: skip
    rows = list(range(1, n_classes + 1))
    keys = torch.nn.functional.normalize(torch.randn(sum(rows), backbone.embed_dim, generator=random), dim=-1)
    return ImageCache(keys, rows, 4.0), {"kind": "cache", "adapter_weight": 1.0, "head_weight": 8.0, "images": 8,
                                         "sharpness": 4.0, "rows": rows}  # fmt: skip


KINDS = ("mmrl + probe", "mmrlpp + probe", "linear_probe", "tip_adapter")  # all that has a head


def small_kind(backbone: Backbone, kind: str, n_classes: int = len(CLASSES), **settings) -> Adapter | Baseline:
    """A small adapter, with a probe and temperatures where the kind says so, or a baseline of that name."""
    method, _, probe = kind.partition(" + ")
    if method in ("mmrl", "mmrlpp") and not probe:
        return small_adapter(backbone, method, **settings)
    if probe:
        adapter = small_adapter(backbone, method, **settings)
        adapter.head, adapter.head_card = small_head(backbone, "linear", n_classes)
        adapter.calibration = {"trained": 1.5, "other": 2.0, "images": 8, "without_probe": 3.0}
        return adapter
    head, card = small_head(backbone, "linear" if method == "linear_probe" else "cache", n_classes)
    if method == "linear_probe":
        card["adapter_weight"] = 0.0
    baseline = Baseline(BaselineConfig(method=method), backbone, head, card)
    baseline.calibration = {"trained": 1.25, "other": 2.0, "images": 8}
    return baseline


def random_images(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
