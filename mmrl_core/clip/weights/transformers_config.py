"""What transformers' config.json says of a CLIP or SigLIP, as the configuration of the same model in open_clip; and
what its preprocessor_config.json says of images. transformers itself is not needed for it.
"""

from collections.abc import Mapping
from typing import Any

from mmrl_core.errors import UserError

# What a configuration leaves out has transformers' defaults; their names are transformers' own.
LAYERS = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
             "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
             "eos_token_id": 49407}  # fmt: skip
CLIP_IMAGE = {**LAYERS, "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu",
              "layer_norm_eps": 1e-5}  # fmt: skip
SIGLIP_TEXT = {**LAYERS, "vocab_size": 32000, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
               "layer_norm_eps": 1e-6}  # fmt: skip
SIGLIP_IMAGE = {**LAYERS, "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6, "vision_use_head": True}  # fmt: skip
# Beyond which no model is, so that a damaged file cannot ask for all of the memory; 10**5 elsewhere.
MOST = {"num_hidden_layers": 1000, "vocab_size": 10**7, "eos_token_id": 10**7}
SECTIONS = {"clip": (CLIP_IMAGE, CLIP_TEXT), "siglip": (SIGLIP_IMAGE, SIGLIP_TEXT)}
ACTIVATIONS = {"gelu": None, "gelu_pytorch_tanh": {"approximate": "tanh"}, "gelu_new": {"approximate": "tanh"}}
QUICK = "quick_gelu"
GEMMAS = 256_000  # tokens of Gemma's vocabulary
LAST_IS_END = 2  # of eos_token_id in old configurations: the end of a text is its highest id
# What people have of the same kind, and where it can be had instead.
KINDS = {
    "siglip2": "SigLIP 2 for images of any shape (NaFlex); take one of a fixed size, as siglip2-base-patch16-224",
    "metaclip_2": "MetaCLIP 2; open_clip has it: backbone.name ViT-H-14-worldwide",
    "clip_text_model": "a text tower alone; take the whole CLIPModel",
    "clip_vision_model": "an image tower alone; take the whole CLIPModel",
    "siglip_text_model": "a text tower alone; take the whole SiglipModel",
    "siglip_vision_model": "an image tower alone; take the whole SiglipModel",
}
# Width, layers, heads and hidden width of timm's SigLIP towers, by what timm calls them.
SIGLIP_SIZES = {
    "base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096), "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}  # fmt: skip


def open_clip_config(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """open_clip's model_cfg of the model that a config.json describes. Raises UserError for one that is neither a CLIP
    nor a SigLIP, and for what open_clip has no words for."""
    kind = str(content.get("model_type"))
    if kind not in SECTIONS:
        what = KINDS.get(kind, f"a model of the kind {kind[:80]!r}")
        raise UserError(f"{where} is {what}" + ("" if kind in KINDS else "; only clip and siglip are read"))
    if content.get("quantization_config"):
        raise UserError(f"{where} is of quantised weights, which are not read; take the model that they were made of")
    image, text = _sections(content, where)
    if image["num_channels"] != 3:
        raise UserError(f"{where} is of images with {image['num_channels']} channels; only three are read")
    return (_clip if kind == "clip" else _siglip)(content, image, text, where)


def _sections(content: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image tower's and the text tower's settings, with defaults, numbers checked."""
    sections = []
    for name, defaults in zip(("vision_config", "text_config"), SECTIONS[content["model_type"]], strict=True):
        stated = content.get(f"{name}_dict") or content.get(name) or {}  # the older name wins in transformers as well
        if not isinstance(stated, dict):
            raise UserError(f"{where}: {name} is no object; fetch or save it again")
        section = {**defaults, **stated}
        for key in (key for key, default in defaults.items() if type(default) is int):
            section[key] = _whole(section[key], f"{where}: {name}.{key}", MOST.get(key, 10**5))
        eps = section["layer_norm_eps"]
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
            raise UserError(f"{where}: {name}.layer_norm_eps is {str(eps)[:80]}, no small number; fetch it again")
        if section["hidden_size"] % section["num_attention_heads"]:
            raise UserError(f"{where}: {name}.hidden_size is no multiple of num_attention_heads; fetch it again")
        sections.append(section)
    return sections[0], sections[1]


def _whole(value: Any, what: str, most: int = 10**5) -> int:
    pair = value if isinstance(value, list) else [value]
    if len(set(map(str, pair))) != 1:
        raise UserError(f"{what} is {str(value)[:80]}; only square images and patches are read")
    if type(pair[0]) is not int or not 0 < pair[0] <= most:
        raise UserError(f"{what} is {str(value)[:80]}, not a whole number from 1 to {most}; fetch or save it again")
    return pair[0]


def _clip(content: Mapping[str, Any], image: dict[str, Any], text: dict[str, Any], where: str) -> dict[str, Any]:
    quick = {section["hidden_act"] == QUICK for section in (image, text)}
    if len(quick) > 1:
        raise UserError(f"{where}: one tower has quick_gelu, the other not, which open_clip's CLIP cannot have")
    image_cfg = {"patch_size": image["patch_size"], "image_size": image["image_size"],
                 "head_width": image["hidden_size"] // image["num_attention_heads"]}  # fmt: skip
    text_cfg = {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"],
                "heads": text["num_attention_heads"], **_end(text)}  # fmt: skip
    return {
        "embed_dim": _whole(content.get("projection_dim", 512), f"{where}: projection_dim"),
        "quick_gelu": quick == {True},
        "vision_cfg": {**image_cfg, **_blocks(image, where)},
        "text_cfg": {**text_cfg, **_blocks(text, where)},
    }


def _end(text: Mapping[str, Any]) -> dict[str, Any]:
    """Which row of a text is read: that of the highest id, or of the first that ends it."""
    end = text["eos_token_id"]
    return {} if end in (LAST_IS_END, text["vocab_size"] - 1) else {"pool_type": "eos", "eos_id": end}


def _blocks(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What both towers have: width, layers, hidden width, activation and the layer norms' epsilon."""
    activation, width, hidden = section["hidden_act"], section["hidden_size"], section["intermediate_size"]
    if not isinstance(activation, str) or activation not in (QUICK, *ACTIVATIONS):
        known = ", ".join([QUICK, *ACTIVATIONS])
        raise UserError(f"{where}: hidden_act {str(activation)[:80]!r} is not supported ({known} are)")
    blocks = {"width": width, "layers": section["num_hidden_layers"], "mlp_ratio": _ratio(hidden, width),
              "norm_kwargs": {"eps": float(section["layer_norm_eps"])}}  # fmt: skip
    settings = ACTIVATIONS.get(activation)
    return {**blocks, "act_kwargs": settings} if settings else blocks


def _ratio(hidden: int, width: int) -> float:
    """By which open_clip comes to that hidden width: it rounds the product down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _siglip(_content: Mapping[str, Any], image: dict[str, Any], text: dict[str, Any], where: str) -> dict[str, Any]:
    width = image["hidden_size"]
    if image["vision_use_head"] is not True or text.get("projection_size", width) not in (None, width):
        raise UserError(f"{where}: its image tower does not pool, or its texts have another width than its images")
    if QUICK in (image["hidden_act"], text["hidden_act"]):
        raise UserError(f"{where}: a SigLIP with quick_gelu is not supported")
    return {
        "embed_dim": width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": image["image_size"], "timm_model_name": timm_name(image), "timm_pool": "map",
                       "timm_proj": "none", "timm_model_pretrained": False},
        "text_cfg": {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"],
                     "heads": text["num_attention_heads"], "no_causal_mask": True, "proj_bias": True,
                     "pool_type": "last", "tokenizer_kwargs": {"clean": _cleaning(text)}, **_blocks(text, where)},
    }  # fmt: skip


def _cleaning(text: Mapping[str, Any]) -> str:
    """How texts were cleaned in training, in open_clip's words: SigLIP 2, with Gemma's tokens, kept the punctuation."""
    return "lower" if text["vocab_size"] == GEMMAS else "canonicalize"


def timm_name(image: Mapping[str, Any]) -> str:
    """What timm calls a SigLIP's image tower of these sizes; the smallest of its family for sizes that it has not."""
    sizes = tuple(image[key] for key in LAYERS)
    sizes = (sizes[0], sizes[2], sizes[3], sizes[1])
    family = next((name for name, own in SIGLIP_SIZES.items() if own == sizes), "base")
    return f"vit_{family}_patch{image['patch_size']}_siglip_{image['image_size']}"


def trunk_settings(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """How timm has to build a SigLIP's image tower, beside its name: sizes, activation, epsilon of the norms.

    open_clip builds most of these towers with exact GELU, whatever they were trained with; a config.json says it."""
    image, _ = _sections(content, where)
    return {"img_size": image["image_size"], "patch_size": image["patch_size"], "embed_dim": image["hidden_size"],
            "depth": image["num_hidden_layers"], "num_heads": image["num_attention_heads"],
            "mlp_ratio": _ratio(image["intermediate_size"], image["hidden_size"]),
            "activation": ACTIVATIONS[image["hidden_act"]] or {}, "eps": float(image["layer_norm_eps"])}  # fmt: skip
