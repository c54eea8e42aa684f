"""Which CLIPs the method covers: a plain ViT that reads its class token, and a causal text tower."""

import torch
from torch import nn

from mmrl_core.clip.openclip import CLIP, ResidualAttentionBlock, VisionTransformer, open_clip
from mmrl_core.errors import UserError


def refuse_by_configuration(name: str) -> None:
    """UserError for a model of open_clip whose towers are unsupported, from its configuration alone: no weights are
    read or fetched, and none are made."""
    config = open_clip.get_model_config(name)
    if any(config["text_cfg"].get(key) for key in ("hf_model_name", "hf_tokenizer_name")):
        raise UserError(
            f"backbone {name} is not supported: its text tower or tokenizer is not CLIP's; use a plain CLIP"
        )
    if config["vision_cfg"].get("timm_model_name"):
        raise _unsupported(name, "its image tower is a TimmModel, not a ViT")
    if config.pop("multimodal_cfg", None):
        raise _unsupported(name, "CoCa is not a CLIP of open_clip")
    of_kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        refuse_unsupported(of_kind(**config), name)


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
        return "its image tower does not read the class token after ln_post"
    if not isinstance(visual.patch_dropout, nn.Identity) or visual.proj is None:
        return "its image tower drops patches or has no projection"
    if visual.image_size[0] != visual.image_size[1]:
        return "its images are not square"
    return _block_problem(visual.transformer.resblocks, "image")


def _text_tower_problem(clip: CLIP) -> str | None:
    if not isinstance(clip, open_clip.CLIP | open_clip.CustomTextCLIP):
        return f"{type(clip).__name__} is not a CLIP of open_clip"
    text = getattr(clip, "text", clip)
    if not hasattr(text, "token_embedding") or not hasattr(text, "transformer"):
        return f"its text tower is a {type(text).__name__}"
    pool_type = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    if pool_type != "argmax" or text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        return "its text tower is not causal or does not read the end-of-text token"
    if not isinstance(text.text_projection, nn.Parameter):
        return "its text projection is not a plain matrix"
    return _block_problem(text.transformer.resblocks, "text")


def _block_problem(blocks: nn.ModuleList, tower: str) -> str | None:
    kinds = {type(block) for block in blocks} - {ResidualAttentionBlock}
    return f"its {tower} tower has {kinds.pop().__name__} layers" if kinds else None
