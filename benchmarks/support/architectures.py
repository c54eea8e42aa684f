"""Writes mmrl_core/assets/architectures.json: the measures of open_clip's architectures, of models without weights.

Every tower is built on torch's meta device: shapes and no numbers. Text towers of Hugging Face are built by its own
classes from the settings in HUGGING_FACE, since their configuration files lie on its Hub.
`python -m benchmarks.support.architectures`, a quarter of a minute, after open_clip, timm or transformers has changed.
"""

import json
import math
from importlib.metadata import version
from typing import Any

import open_clip
import torch
from open_clip.model import _build_text_tower, _build_vision_tower
from torch import nn

from mmrl_core.clip.shapes import MEASURES, hugging_face_head

FIRST = ("fc1", "fc1_g", "w0")  # how timm's MLPs call their first matrix, or one of the first two
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1}
NLLB = {"d_model": 1024, "encoder_attention_heads": 16, "vocab_size": 256206, "decoder_layers": 1}
HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {  # a class of transformers, and what the published model sets
    "roberta-base": ("Roberta", {**ROBERTA, "vocab_size": 50265}),
    "xlm-roberta-base": ("XLMRoberta", {**ROBERTA, "vocab_size": 250002}),
    "xlm-roberta-large": ("XLMRoberta", {**ROBERTA, **LARGE, "vocab_size": 250002}),
    "google/mt5-base": ("MT5", {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}),
    "google/mt5-xl": ("MT5", {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32}),
    "facebook/nllb-200-distilled-600M": ("M2M100", {**NLLB, "encoder_layers": 12, "encoder_ffn_dim": 4096}),
    "facebook/nllb-200-distilled-1.3B": ("M2M100", {**NLLB, "encoder_layers": 24, "encoder_ffn_dim": 8192}),
}


def count(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


def image_tower(name: str) -> nn.Module:
    """open_clip's own, on the meta device."""
    config = open_clip.get_model_config(name)
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    with torch.device("meta"):
        return _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))


def text_parameters(name: str, hugging_face: dict[str, Any]) -> int:
    """Of an architecture's text tower with its head."""
    config = open_clip.get_model_config(name)
    text, embed = config["text_cfg"], config["embed_dim"]
    if "hf_model_name" in text:
        known = hugging_face[text["hf_model_name"]]
        return known["body"] + hugging_face_head(text, known["width"], embed)
    with torch.device("meta"):
        return count(_build_text_tower(embed, open_clip.CLIPTextCfg(**text), config.get("quick_gelu", False)))


def timm_tower(image: nn.Module) -> dict[str, Any] | None:
    """The measures of open_clip's TimmModel where its trunk is a transformer of layers all alike; None of any other.
    A patch is what one of the first layer's rows covers; `positions` are rows with an embedding of their own."""
    trunk = getattr(image, "trunk", None)
    mlp = trunk.blocks[0].mlp if type(trunk).__name__ in ("Eva", "VisionTransformer") else None
    first = next((getattr(mlp, name) for name in FIRST if hasattr(mlp, name)), None)
    if trunk is None or first is None:
        return None
    return {
        "width": trunk.embed_dim, "depth": len(trunk.blocks), "heads": trunk.blocks[0].attn.num_heads,
        "hidden": first.out_features, "gated": not hasattr(mlp, "fc1"),
        "patch": trunk.patch_embed.img_size[0] // math.isqrt(trunk.patch_embed.num_patches),
        "prefix": trunk.num_prefix_tokens, "positions": 0 if trunk.pos_embed is None else trunk.patch_embed.num_patches,
        "body": count(image) - count(trunk.head) - count(image.head),
    }  # fmt: skip


def hugging_face_tower(name: str) -> dict[str, Any]:
    import transformers

    kind, settings = HUGGING_FACE[name]
    both = kind in ("MT5", "M2M100")  # encoder and decoder, of which open_clip keeps the encoder
    config = getattr(transformers, f"{kind}Config")(**settings)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(config, **({} if both else {"add_pooling_layer": False}))
    model = model.encoder if both else model
    sizes = {"width": config.hidden_size, "heads": config.num_attention_heads}
    keys = ("d_ff", "encoder_ffn_dim", "intermediate_size")
    hidden = next(getattr(config, key) for key in keys if hasattr(config, key))
    depth = settings.get("num_layers") or settings.get("encoder_layers") or config.num_hidden_layers
    return {**sizes, "depth": depth, "hidden": hidden, "gated": kind == "MT5", "body": count(model)}


def measures() -> dict[str, Any]:
    """All that the file holds."""
    found: dict[str, Any] = {"made_with": {name: version(name) for name in ("open_clip_torch", "timm", "transformers")}}
    found |= {"image": {}, "text": {name: hugging_face_tower(name) for name in HUGGING_FACE}, "parameters": {}}
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        image = image_tower(name)
        if tower := timm_tower(image):
            found["image"][vision["timm_model_name"]] = tower
        found["parameters"][name] = [count(image), text_parameters(name, found["text"])]
    return found


def write() -> None:
    parts = []
    for key, rows in measures().items():
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        parts.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
    MEASURES.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    write()
