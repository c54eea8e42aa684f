"""open_clip, without what it imports for models that this project has no use for. The only file that imports it.

Its ResNets take one class from torchvision, its image transforms some more, its timm models four names from timm: their
submodules are imported, not all of torchvision and timm, and with them torch's compiler, for these.
"""

from mmrl_core.deferred import import_deferring

__all__ = ["CLIP", "ResidualAttentionBlock", "TextTransformer", "VisionTransformer", "open_clip"]

open_clip = import_deferring("open_clip", "timm", "timm.layers", "torchvision", "torchvision.models", "torchvision.ops")
CLIP = open_clip.CLIP
ResidualAttentionBlock = open_clip.transformer.ResidualAttentionBlock
TextTransformer = open_clip.transformer.TextTransformer
VisionTransformer = open_clip.transformer.VisionTransformer
