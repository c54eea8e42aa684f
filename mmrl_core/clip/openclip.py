"""open_clip, without what it imports for models that this project has no use for. The only file that imports it.

Its ResNets take one class from torchvision, its image transforms some more, its timm models four names from timm: their
submodules are imported, not all of torchvision and timm, and with them torch's compiler, for these. transformers, which
takes another second where it is installed, is imported when a text tower of it is made.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from mmrl_core.deferred import import_deferring

__all__ = ["CLIP", "ResidualAttentionBlock", "TextTransformer", "VisionTransformer", "open_clip"]

# What open_clip.hf_model takes from transformers, by the module that has it.
OUTPUTS = ("BaseModelOutput", "BaseModelOutputWithPooling", "BaseModelOutputWithPoolingAndCrossAttentions")
FROM_TRANSFORMERS = {
    **dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer", "PretrainedConfig"), "transformers"),
    **dict.fromkeys(OUTPUTS, "transformers.modeling_outputs"),
}


class OnUse:
    """A class of transformers, imported when something is asked of it."""

    def __init__(self, module: str, name: str):
        self._place = module, name

    def _itself(self) -> Any:
        module, name = self._place
        return getattr(importlib.import_module(module), name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._itself(), attribute)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._itself())


def _imported() -> ModuleType:
    others = ("timm", "timm.layers", "torchvision", "torchvision.models", "torchvision.ops")
    if {"open_clip", "transformers"} & sys.modules.keys() or find_spec("transformers") is None:
        return import_deferring("open_clip", *others)
    sys.modules["transformers"] = None  # type: ignore[assignment]  # how Python marks what is not to be had
    try:
        module = import_deferring("open_clip", *others)
    finally:
        del sys.modules["transformers"]
    reader = module.hf_model
    reader.transformers = True  # open_clip asks only whether it is there
    for name, home in FROM_TRANSFORMERS.items():
        setattr(reader, name, OnUse(home, name))
    return module


open_clip = _imported()
CLIP = open_clip.CLIP
ResidualAttentionBlock = open_clip.transformer.ResidualAttentionBlock
TextTransformer = open_clip.transformer.TextTransformer
VisionTransformer = open_clip.transformer.VisionTransformer
