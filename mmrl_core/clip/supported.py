"""Which CLIPs the method covers: two stacks of residual attention blocks, whose features are read in a known way.

`problem_of` judges a configuration, before anything is fetched or made; `refuse_unsupported` the modules themselves.
"""

import re
from collections.abc import Mapping
from typing import Any

from mmrl_core.clip.families import images, texts
from mmrl_core.clip.families.open_clip_blocks import OTHER_LAYERS
from mmrl_core.clip.openclip import CLIP, open_clip
from mmrl_core.errors import UserError

CONVOLUTIONS = "its image tower is {kind}: convolutions have no sequence of tokens"
# Each makes open_clip build layers of another kind.
OF_OWN_BLOCKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
# timm's names of models of which families/timm_images.py reads the class, and of others that begin alike.
TIMM_VITS = re.compile(r"(eva|eva02|vit|vit_pe_core|vitamin)_(?!.*(relpos|_reg\d|rope|_r\d+_|_gate|intern)).*")
TIMM_CONVOLUTIONS = {"convnext": "a ConvNeXt", "fastvit": "a FastViT", "resnet": "a ResNet"}
# Names on Hugging Face by the kind of model that they are, which a configuration does not say.
TEXT_MODELS = {r"(.*/)?(xlm-)?roberta-.*": "roberta", r"(.*/)?mt5-.*": "mt5", r"(.*/)?(nllb|m2m100)[-_].*": "m2m_100"}


def refuse_by_configuration(name: str, config: Mapping[str, Any]) -> None:
    """UserError for a model whose towers are unsupported, from its configuration alone: nothing is read, fetched or
    made, so that it costs nothing."""
    if problem := problem_of(config):
        raise _unsupported(name, problem)


def problem_of(config: Mapping[str, Any]) -> str | None:
    """Why a model of this configuration (open_clip's `model_cfg`) cannot be adapted; None for one that can."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    image_problem = _timm_problem if vision.get("timm_model_name") else _vit_problem
    text_problem = _hugging_face_problem if text.get("hf_model_name") else _text_problem
    return image_problem(vision) or text_problem(text)


def _timm_problem(vision: Mapping[str, Any]) -> str | None:
    name = vision["timm_model_name"]
    for begins, kind in TIMM_CONVOLUTIONS.items():
        if name.startswith(begins):
            return CONVOLUTIONS.format(kind=kind)
    if not TIMM_VITS.fullmatch(name):
        return f"its image tower is timm's {name}, not a plain ViT"
    if vision.get("timm_pool", "avg") not in ("token", "map", "avg", ""):
        return images.UNREAD
    if vision.get("timm_proj") == "mlp":
        return "its image projection is not a matrix"
    return images.PATCHES_DROPPED if vision.get("patch_dropout") else None


def _vit_problem(vision: Mapping[str, Any]) -> str | None:
    cfg = open_clip.CLIPVisionCfg(**vision)
    if not isinstance(cfg.layers, int):
        return CONVOLUTIONS.format(kind="a ResNet")
    if cfg.pool_type not in ("tok", "avg") or isinstance(cfg.attentional_pool, str):
        return images.UNREAD
    if cfg.patch_dropout:
        return images.PATCHES_DROPPED
    if not isinstance(cfg.image_size, int) and len(set(cfg.image_size)) > 1:
        return images.NOT_SQUARE
    return _own_blocks(cfg, "image")


def _hugging_face_problem(text: Mapping[str, Any]) -> str | None:
    name = text["hf_model_name"]
    kind = next((kind for pattern, kind in TEXT_MODELS.items() if re.fullmatch(pattern, name)), None)
    if kind is None:
        return f"its text tower is {name} of transformers, which has no reader here"
    pooler = text.get("hf_pooler_type") or "mean_pooler"
    known = ("mean_pooler", "cls_last_hidden_state_pooler") + (("cls_pooler",) if kind == "m2m_100" else ())
    return None if pooler in known else texts.NOT_READ


def _text_problem(text: Mapping[str, Any]) -> str | None:
    cfg = open_clip.CLIPTextCfg(**text)
    return _own_blocks(cfg, "text") if cfg.pool_type in texts.POOLS else texts.NOT_READ


def _own_blocks(cfg: Any, tower: str) -> str | None:
    own = cfg.block_type == "custom" or any(getattr(cfg, feature) for feature in OF_OWN_BLOCKS)
    return OTHER_LAYERS.format(tower=tower, kind="CustomResidualAttentionBlock") if own else None


def refuse_unsupported(clip: CLIP, name: str) -> None:
    """UserError naming what is unsupported about a model's towers."""
    if problem := images.problem(clip) or texts.problem(clip):
        raise _unsupported(name, problem)


def _unsupported(name: str, problem: str) -> UserError:
    return UserError(f"backbone {name} is not supported: {problem}; `mmrl backbones` lists those that are")
