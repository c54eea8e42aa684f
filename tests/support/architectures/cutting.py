"""Configurations of open_clip with two layers a tower and little width."""

import re
from typing import Any

EMBED, IMAGE_WIDTH, TEXT_WIDTH, HEAD = 32, 48, 32, 16
PATCH, VOCABULARY, CONTEXT = 8, 120, 12
OF_SIZE = ("timm_drop", "timm_drop_path", "timm_model_pretrained", "head_width", "tokenizer_kwargs", "tokenizer_mode")


def cut_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a small model of the same kind, for `make`."""
    vision, text = (_without_sizes(config[tower]) for tower in ("vision_cfg", "text_cfg"))
    embed = IMAGE_WIDTH if vision.get("timm_proj") == "none" else EMBED  # SigLIP's width is its embedding's
    cut = {"embed_dim": embed, "vision_cfg": _vision(vision), "text_cfg": _text(text, embed)}
    if "multimodal_cfg" in config:
        cut["multimodal_cfg"] = {"context_length": CONTEXT, "width": 16, "heads": 2, "layers": 1}
    return cut | {key: config[key] for key in ("custom_text", "quick_gelu", "init_logit_bias") if key in config}


def _without_sizes(tower: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tower.items() if key not in OF_SIZE}


def _vision(vision: dict[str, Any]) -> dict[str, Any]:
    """Of 2 x 2 patches, with a rest of the image that is in no patch where the real one has such a rest."""
    if (name := vision.get("timm_model_name")) is not None:
        named = re.search(r"patch(\d+)", name)
        patch, small = (int(named[1]), PATCH) if named else (16, 16)
        return vision | {"image_size": 2 * small + (3 if vision["image_size"] % patch else 0)}
    rest = 3 if vision.get("image_size", 224) % vision["patch_size"] else 0
    cut = {"layers": 2, "width": IMAGE_WIDTH, "head_width": HEAD, "patch_size": PATCH, "image_size": 2 * PATCH + rest}
    return vision | cut | ({"attn_pooler_queries": 3} if vision.get("attentional_pool") else {})


def _text(text: dict[str, Any], embed: int) -> dict[str, Any]:
    if "hf_model_name" in text:
        return text
    width = embed if text.get("proj_type") == "none" else TEXT_WIDTH
    return text | {"width": width, "heads": 2, "layers": 2, "vocab_size": VOCABULARY, "context_length": CONTEXT}
