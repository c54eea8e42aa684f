"""Which CLIPs the method covers: a plain ViT that reads its class token, and a causal text tower."""

from typing import Any

from torch import nn

from mmrl_core.clip.openclip import CLIP, ResidualAttentionBlock, VisionTransformer, open_clip
from mmrl_core.errors import UserError

UNREAD_CLASS_TOKEN = "its image tower does not read the class token after ln_post"
PATCHES_DROPPED = "its image tower drops patches or has no projection"
NOT_SQUARE = "its images are not square"
NOT_CAUSAL = "its text tower is not causal or does not read the end-of-text token"
NOT_A_MATRIX = "its text projection is not a plain matrix"
OTHER_LAYERS = "its {tower} tower has {kind} layers"
# Each makes open_clip build layers of another kind.
OF_OWN_BLOCKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


def refuse_by_configuration(name: str, config: dict[str, Any]) -> None:
    """UserError for a model whose towers are unsupported, from its configuration in open_clip's form alone: nothing is
    read, fetched or made, so that it costs nothing."""
    if problem := _configured_problem(config):
        raise _unsupported(name, problem)


def _configured_problem(config: dict[str, Any]) -> str | None:
    vision, text = config["vision_cfg"], config["text_cfg"]
    if any(text.get(key) for key in ("hf_model_name", "hf_tokenizer_name")):
        return "its text tower or tokenizer is not CLIP's"
    if vision.get("timm_model_name"):
        return "its image tower is a TimmModel, not a ViT"
    if config.get("multimodal_cfg"):
        return "CoCa is not a CLIP of open_clip"
    return _configured_image_problem(open_clip.CLIPVisionCfg(**vision)) or _configured_text_problem(
        open_clip.CLIPTextCfg(**text)
    )


def _configured_image_problem(cfg: Any) -> str | None:
    if not isinstance(cfg.layers, int):
        return "its image tower is a ModifiedResNet, not a ViT"
    if cfg.attentional_pool or cfg.pool_type != "tok" or cfg.final_ln_after_pool:
        return UNREAD_CLASS_TOKEN
    if cfg.patch_dropout:
        return PATCHES_DROPPED
    if not isinstance(cfg.image_size, int) and len(set(cfg.image_size)) > 1:
        return NOT_SQUARE
    return OTHER_LAYERS.format(tower="image", kind="CustomResidualAttentionBlock") if _has_own_blocks(cfg) else None


def _configured_text_problem(cfg: Any) -> str | None:
    if cfg.pool_type != "argmax" or cfg.no_causal_mask or cfg.embed_cls:
        return NOT_CAUSAL
    if cfg.proj_type != "linear" or cfg.proj_bias:
        return NOT_A_MATRIX
    return OTHER_LAYERS.format(tower="text", kind="CustomResidualAttentionBlock") if _has_own_blocks(cfg) else None


def _has_own_blocks(cfg: Any) -> bool:
    return cfg.block_type == "custom" or any(getattr(cfg, feature) for feature in OF_OWN_BLOCKS)


def refuse_unsupported(clip: CLIP, name: str) -> None:
    """UserError naming what is unsupported about a model's towers."""
    problem = _image_tower_problem(clip) or _text_tower_problem(clip)
    if problem:
        raise _unsupported(name, problem)


def _unsupported(name: str, problem: str) -> UserError:
    return UserError(f"backbone {name} is not supported: {problem}; use a CLIP with a plain ViT and causal text tower")


def _image_tower_problem(clip: CLIP) -> str | None:
    visual = getattr(clip, "visual", None)
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {type(visual).__name__}, not a ViT"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        return UNREAD_CLASS_TOKEN
    if not isinstance(visual.patch_dropout, nn.Identity) or visual.proj is None:
        return PATCHES_DROPPED
    if visual.image_size[0] != visual.image_size[1]:
        return NOT_SQUARE
    return _block_problem(visual.transformer.resblocks, "image")


def _text_tower_problem(clip: CLIP) -> str | None:
    if not isinstance(clip, open_clip.CLIP | open_clip.CustomTextCLIP):
        return f"{type(clip).__name__} is not a CLIP of open_clip"
    text = getattr(clip, "text", clip)
    if not hasattr(text, "token_embedding") or not hasattr(text, "transformer"):
        return f"its text tower is a {type(text).__name__}"
    pool_type = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    if pool_type != "argmax" or text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        return NOT_CAUSAL
    if not isinstance(text.text_projection, nn.Parameter):
        return NOT_A_MATRIX
    return _block_problem(text.transformer.resblocks, "text")


def _block_problem(blocks: nn.ModuleList, tower: str) -> str | None:
    kinds = {type(block) for block in blocks} - {ResidualAttentionBlock}
    return OTHER_LAYERS.format(tower=tower, kind=kinds.pop().__name__) if kinds else None
