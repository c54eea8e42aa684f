"""Models of open_clip's own classes from configurations of `cut_config`.

Towers of timm and transformers are made by these at two layers, and put into open_clip's adapters in place of small
stand-ins: open_clip passes no sizes on.
"""

from functools import partial
from typing import Any

import open_clip
from open_clip.hf_model import HFTextEncoder
from torch import nn

from tests.support.architectures.cutting import CONTEXT, HEAD, IMAGE_WIDTH, PATCH, TEXT_WIDTH, VOCABULARY

STAND_IN = {"timm_model_name": "test_vit", "image_size": 160}
TRANSFORMERS = {
    "xlm-roberta": "XLMRobertaConfig",
    "roberta": "RobertaConfig",
    "mt5": "MT5Config",
    "nllb": "M2M100Config",
}


def make(config: dict[str, Any]) -> nn.Module:
    """A CLIP, CustomTextCLIP or CoCa, its weights as its library draws them."""
    config = dict(config)
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    of_timm, of_transformers = "timm_model_name" in vision, "hf_model_name" in text
    custom = config.pop("custom_text", False) or of_transformers
    config["vision_cfg"] = open_clip.CLIPVisionCfg(**(vision | STAND_IN if of_timm else vision))
    config["text_cfg"] = open_clip.CLIPTextCfg(**({"layers": 1, "width": 16, "heads": 1} if of_transformers else text))
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    clip = kind(**config)
    if of_timm:
        clip.visual.trunk = timm_trunk(vision, embed)
        clip.visual.image_size = (vision["image_size"],) * 2
        if vision["timm_proj"] == "linear":
            clip.visual.head.proj = nn.Linear(IMAGE_WIDTH, embed, bias=vision.get("timm_proj_bias", False))
    if of_transformers:
        put_transformers_text(clip, open_clip.CLIPTextCfg(**text), embed)
    return clip


def timm_trunk(vision: dict[str, Any], embed: int) -> nn.Module:
    """As open_clip's TimmModel asks for it, but small."""
    import timm

    name, proj, pool = vision["timm_model_name"], vision["timm_proj"], vision["timm_pool"]
    sizes = {"depth": 2, "embed_dim": IMAGE_WIDTH, "num_heads": IMAGE_WIDTH // HEAD, "img_size": vision["image_size"]}
    if proj == "linear":
        trunk = timm.create_model(name, **sizes, **(vitamin_stem() if "vitamin" in name else {"patch_size": PATCH}))
        trunk.reset_classifier(0, **({"global_pool": pool} if pool else {}))
        return trunk
    head = {"num_classes": 0 if proj == "none" else embed, "global_pool": pool}
    if name == "vit_base_mci_224":
        return mobileclip_trunk(**sizes, **head)
    return timm.create_model(name, patch_size=PATCH, **sizes, **head)


def vitamin_stem() -> dict[str, Any]:
    """ViTamin's convolutions before its blocks, which divide an image by 16."""
    from timm.models.vitamin import VitCfg, VitConvCfg

    convolutions = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    return {"embed_cfg": VitCfg((8, 16, IMAGE_WIDTH), (1, 1, 1), 8, convolutions, "1d")}


def mobileclip_trunk(embed_dim: int, **sizes: Any) -> nn.Module:
    """timm's vit_base_mci_224, whose stem would be 768 wide whatever is asked for."""
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed

    stem = ConvStem(
        channels=(embed_dim // 4, embed_dim // 4, embed_dim), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0,
        act_layer=nn.GELU,
    )  # fmt: skip
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    return VisionTransformer(embed_layer=embed, patch_size=1, embed_dim=embed_dim, no_embed_class=True, **sizes)


def put_transformers_text(clip: nn.Module, text: Any, embed: int, sizes: dict[str, int] | None = None) -> nn.Module:
    """The model with the text tower that open_clip makes from a name of the Hugging Face Hub; small without sizes."""
    config = transformers_config(text.hf_model_name)
    config.update(sizes or {})
    clip.text = transformers_text(text, embed, config)
    clip.context_length, clip.vocab_size = clip.text.context_length, clip.text.vocab_size
    return clip


def transformers_text(text: Any, embed: int, config: Any) -> HFTextEncoder:
    from transformers import AutoModel

    encoder = HFTextEncoder(
        text.hf_model_name, embed, config, text.hf_pooler_type, text.hf_proj_type, output_tokens=text.output_tokens
    )
    if config.is_encoder_decoder:
        encoder.transformer = encoder.transformer.encoder
    else:
        encoder.transformer = AutoModel.from_config(config, add_pooling_layer=text.hf_pooler_type == "cls_pooler")
    return encoder


def transformers_config(name: str) -> Any:
    """What the Hub's config.json of that model says, but for the sizes."""
    import transformers

    kind = next(kind for kind in TRANSFORMERS if name.split("/")[-1].startswith(kind))
    make_config = getattr(transformers, TRANSFORMERS[kind])
    if kind == "mt5":
        sizes = {"d_model": TEXT_WIDTH, "d_kv": HEAD, "d_ff": 48, "num_layers": 2, "num_heads": 3}
        return make_config(vocab_size=VOCABULARY, num_decoder_layers=1, feed_forward_proj="gated-gelu", **sizes)
    if kind == "nllb":
        layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        sizes = {"d_model": TEXT_WIDTH, "max_position_embeddings": CONTEXT + 8}
        return make_config(vocab_size=VOCABULARY, scale_embedding=True, **layers, **heads, **sizes)
    sizes = {"hidden_size": TEXT_WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return make_config(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT + 2, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, **sizes,
    )  # fmt: skip
