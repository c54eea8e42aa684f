"""open_clip's models from a configuration, with nothing fetched for them: weights come later, or are random."""

from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from mmrl_core.clip.openclip import CLIP, open_clip
from mmrl_core.clip.portable import PortableInit
from mmrl_core.clip.weights.places import short
from mmrl_core.clip.weights.tokenizers import Tokenizer
from mmrl_core.errors import UserError
from mmrl_core.parsing import whole_number

Config = dict[str, Any]  # open_clip's model_cfg: embed_dim, vision_cfg, text_cfg ...
SIGLIP_TRUNK = "vit_base_patch16_siglip_224"  # whatever its sizes, which are given beside the name
TIMM_EPS = 1e-6  # of its layer norms
STAND_IN = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 16}  # for an image tower that is put in later


class LoadedCLIP(NamedTuple):
    """A model of open_clip with its weights, the digest of the file that they came from, if they came from one, and the
    tokenizer of where they are from. Of weights in shards it is the digest of these files' digests in order of name.
    `configuration_sha256` is of what a folder or repository says beside its weights, None of other sources."""

    clip: CLIP
    file_sha256: str | None
    tokenizer: Tokenizer
    configuration_sha256: str | None = None


def is_random(weights: str | None) -> bool:
    """Whether `backbone.weights` asks for random ones."""
    return weights is not None and weights.split(":")[0] == "random"


def random_model(name: str, config: Config, weights: str, trunk: dict[str, Any] | None = None) -> CLIP:
    """A model with the weights that `random` or `random:SEED` draws. Raises UserError for a seed that is none, and for
    a configuration of which no model can be made."""
    number = whole_number(weights.partition(":")[2] or "0")
    if number is None:
        raise UserError(f"backbone.weights {weights!r}: the seed after `random:` must be a whole number")
    try:
        with PortableInit(number):
            return new_model(config, trunk)
    except Exception as error:  # open_clip, timm, transformers and torch raise many kinds
        raise UserError(f"backbone {name} cannot be built: {short(error)}") from error


def new_model(config: Config, trunk: dict[str, Any] | None = None) -> CLIP:
    """The model that open_clip's `create_model` makes of a configuration, without weights. `trunk` has what timm is to
    be told beside a SigLIP tower's name (`transformers_config.trunk_settings`)."""
    config = deepcopy(config)
    is_custom = config.pop("custom_text", False) or config["text_cfg"].get("hf_model_name")
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    if config["text_cfg"].get("hf_model_name"):
        config["text_cfg"]["hf_model_pretrained"] = False
    if trunk is not None:
        return _siglip(config, trunk)
    if is_custom and "multimodal_cfg" in config:
        return open_clip.CoCa(**config)
    return (open_clip.CustomTextCLIP if is_custom else CLIP)(**config)


def _siglip(config: Config, trunk: dict[str, Any]) -> CLIP:
    """open_clip passes neither sizes nor an activation on to timm, so the tower is made beside it and put in."""
    import timm

    clip = open_clip.CustomTextCLIP(**{**config, "vision_cfg": STAND_IN})
    with torch.device("meta"):
        clip.visual = open_clip.timm_model.TimmModel(
            SIGLIP_TRUNK, config["embed_dim"], config["vision_cfg"]["image_size"], pool="map", proj="none"
        )
    sizes = {key: value for key, value in trunk.items() if key not in ("activation", "eps")}
    layers: dict[str, Any] = {}
    if trunk["activation"]:
        layers["act_layer"] = partial(nn.GELU, **trunk["activation"])
    if trunk["eps"] != TIMM_EPS:
        layers["norm_layer"] = partial(timm.layers.LayerNorm, eps=trunk["eps"])
    clip.visual.trunk = timm.create_model(SIGLIP_TRUNK, num_classes=0, global_pool="map", **sizes, **layers)
    return clip
