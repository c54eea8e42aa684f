"""The tensors of transformers' CLIPModel and SiglipModel by open_clip's names, each of them accounted for."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

IN_LAYER = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
IN_TIMM_LAYER = {
    "self_attn.out_proj": "attn.proj", "layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
CLIP = {
    **TEXT,
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # their spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
TURNED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}  # (E, D), not (D, E)
HEAD, POOL = "vision_model.head.", "visual.trunk.attn_pool."
SIGLIP = {
    **{theirs: f"text.{ours}" for theirs, ours in TEXT.items()},
    "text_model.head.weight": "text.text_projection.weight",
    "text_model.head.bias": "text.text_projection.bias",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "vision_model.embeddings.patch_embedding.weight": "visual.trunk.patch_embed.proj.weight",
    "vision_model.embeddings.patch_embedding.bias": "visual.trunk.patch_embed.proj.bias",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.weight": "visual.trunk.norm.weight",
    "vision_model.post_layernorm.bias": "visual.trunk.norm.bias",
    f"{HEAD}probe": f"{POOL}latent",
    f"{HEAD}attention.out_proj.weight": f"{POOL}proj.weight",
    f"{HEAD}attention.out_proj.bias": f"{POOL}proj.bias",
    **{f"{HEAD}{theirs}.{part}": f"{POOL}{ours}.{part}"
       for theirs, ours in (("layernorm", "norm"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"))
       for part in ("weight", "bias")},
}  # fmt: skip
COUNTED = re.compile(r"(text|vision)_model\.embeddings\.position_ids")  # numbers from 0, which older releases saved
LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
PARTS = ("q_proj", "k_proj", "v_proj")


class Naming(NamedTuple):
    """How a kind of model is renamed: single tensors, those that are turned, and the layers of both towers."""

    single: Mapping[str, str]
    turned: Mapping[str, str]
    layers: Mapping[
        str, tuple[str, Mapping[str, str], str]
    ]  # tower -> our prefix, names in a layer, name of q, k and v


NAMINGS = {
    "clip": Naming(CLIP, TURNED, {"text": ("transformer.resblocks.", IN_LAYER, "attn.in_proj_"),
                                  "vision": ("visual.transformer.resblocks.", IN_LAYER, "attn.in_proj_")}),
    "siglip": Naming(SIGLIP, {}, {"text": ("text.transformer.resblocks.", IN_LAYER, "attn.in_proj_"),
                                  "vision": ("visual.trunk.blocks.", IN_TIMM_LAYER, "attn.qkv.")}),
}  # fmt: skip


def renamed(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """By open_clip's names, q, k and v put together. Raises ValueError for a tensor that such a model has not, and for
    one that is missing within a layer; others that are missing show when the model is filled."""
    naming, state, parts = NAMINGS[kind], {}, {}
    for name, tensor in tensors.items():
        if ours := _named(name, naming):
            state[ours] = _shaped(ours, tensor.T if name in naming.turned else tensor)
        elif (match := LAYER.fullmatch(name)) and match[3].removeprefix("self_attn.") in PARTS:
            tower, layer, part, half = match.groups()
            parts[tower, layer, half, part.removeprefix("self_attn.")] = tensor
        elif kind == "siglip" and name.startswith(f"{HEAD}attention.in_proj_"):
            state |= _pooling(name.rpartition("_")[2], tensor)
        elif not COUNTED.fullmatch(name):
            raise ValueError(f"it has a tensor {name[:80]}, which a {kind} has not")
    return state | _joined(parts, naming)


def _named(name: str, naming: Naming) -> str | None:
    """What open_clip calls a tensor that it has as it is, but for being turned."""
    if ours := naming.single.get(name) or naming.turned.get(name):
        return ours
    if not (match := LAYER.fullmatch(name)):
        return None
    tower, layer, part, half = match.groups()
    prefix, in_layer, _ = naming.layers[tower]
    return f"{prefix}{layer}.{in_layer[part]}.{half}" if part in in_layer else None


def _shaped(ours: str, tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0) if ours == "visual.trunk.pos_embed" and tensor.ndim == 2 else tensor


def _joined(parts: Mapping[tuple[str, str, str, str], Tensor], naming: Naming) -> dict[str, Tensor]:
    """Weights and biases of q, k and v, one above the other, as both libraries take them."""
    state = {}
    for tower, layer, half in sorted({key[:3] for key in parts}):
        missing = [part for part in PARTS if (tower, layer, half, part) not in parts]
        if missing:
            raise ValueError(f"it lacks {tower}_model.encoder.layers.{layer}.self_attn.{missing[0]}.{half}")
        prefix, _, joint = naming.layers[tower]
        state[f"{prefix}{layer}.{joint}{half}"] = torch.cat([parts[tower, layer, half, part] for part in PARTS])
    return state


def _pooling(half: str, tensor: Tensor) -> dict[str, Tensor]:
    """The pooling's joint q, k and v (3 D, ...) as timm has them: q by itself."""
    width = len(tensor) // 3
    return {f"{POOL}q.{half}": tensor[:width], f"{POOL}kv.{half}": tensor[width:]}
