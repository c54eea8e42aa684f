"""A model of every family at its published size, but for CLIPA's depth, with random weights and without the network."""

import open_clip

from mmrl_core.clip.backbone import Backbone, Tokenizer
from tests.support.architectures import cut, form_of
from tests.support.architectures.making import put_transformers_text
from tests.support.architectures.words import OF_CLIP, Words, words_of

FAMILIES = [
    "ViT-B-16", "EVA02-B-16", "MobileCLIP-B", "PE-Core-B-16", "ViT-B-16-SigLIP", "ViT-L-14-CLIPA", "coca_ViT-B-32",
    "xlm-roberta-base-ViT-B-32",
]  # fmt: skip
LAYERS = {"ViT-L-14-CLIPA": 12}  # of the image tower; CLIPA has no smaller one
XLM_ROBERTA_BASE = {
    "vocab_size": 250002, "max_position_embeddings": 514, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072,
}  # fmt: skip


def backbone_of(name: str, quick: bool) -> Backbone:
    """The family's model; cut to two layers where it only has to run."""
    if quick:
        clip, tokenizer = cut(form_of(name))
        return Backbone.from_clip(clip, name=name, tokenizer=tokenizer)
    config = open_clip.get_model_config(name)
    if name in LAYERS:
        config["vision_cfg"]["layers"] = LAYERS[name]
    return Backbone.from_clip(made(config).eval(), name=name, tokenizer=tokenizer_of(config["text_cfg"]))


def made(config: dict) -> open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa:
    """open_clip's model of a configuration."""
    vision, text = open_clip.CLIPVisionCfg(**config["vision_cfg"]), open_clip.CLIPTextCfg(**config["text_cfg"])
    sizes = {key: config[key] for key in ("embed_dim", "quick_gelu", "init_logit_bias") if key in config}
    if text.hf_model_name:
        clip = open_clip.CustomTextCLIP(vision_cfg=vision, text_cfg=open_clip.CLIPTextCfg(layers=1), **sizes)
        return put_transformers_text(clip, text, config["embed_dim"], XLM_ROBERTA_BASE)
    if "multimodal_cfg" in config:
        return open_clip.CoCa(vision_cfg=vision, text_cfg=text, multimodal_cfg=config["multimodal_cfg"], **sizes)
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return kind(vision_cfg=vision, text_cfg=text, **sizes)


def tokenizer_of(text: dict) -> Tokenizer:
    """CLIP's own, or words of the lengths that the family's real one pads to."""
    words, context = words_of(text), text.get("context_length", 77)
    if words == OF_CLIP:
        return open_clip.get_tokenizer("ViT-B-16", context_length=context)
    return Words(words.begin, words.end, words.pad, context, text.get("vocab_size", XLM_ROBERTA_BASE["vocab_size"]))
