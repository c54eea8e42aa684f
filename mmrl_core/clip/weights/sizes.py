"""The sizes of a CLIP, read off weights and off configurations: open_clip would stretch the position embeddings of
weights of another image size or context length without a word, and such a CLIP is another one."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmrl_core.clip.openclip import open_clip
from mmrl_core.clip.weights.names import is_accepted
from mmrl_core.clip.weights.places import is_place
from mmrl_core.errors import UserError

Sizes = dict[str, int]  # by what they are of, in words


def check_sizes(name: str, config: dict[str, Any], weights: str, state: Mapping[str, Tensor]) -> None:
    """UserError naming both sizes, and the model that the weights belong to, where a state dict has other ones than the
    model of that name and configuration. Sizes that cannot be read off it are left to whoever loads it."""
    theirs, ours = _of_state(state), _of_model(config)
    wrong = [what for what, size in theirs.items() if size != ours[what]]
    if not wrong:
        return
    differences = ", ".join(f"their {what} is {theirs[what]}, not {ours[what]}" for what in wrong[:3])
    raise UserError(
        f"backbone.weights {weights!r} does not load into {name}: {differences}; {_hint(name, config, theirs)}"
    )


def _hint(name: str, config: dict[str, Any], theirs: Sizes) -> str:
    if is_place(name):
        return "they are not the weights of the configuration beside them; fetch or save both again"
    quick = bool(config.get("quick_gelu"))
    fitting = [other for other in open_clip.list_models() if _fits(other, theirs, quick)]
    return f"use backbone.name {' or '.join(fitting[:3])}" if fitting else f"use weights of {name}"


def _fits(name: str, sizes: Sizes, quick_gelu: bool) -> bool:
    config = open_clip.get_model_config(name)
    if bool(config.get("quick_gelu")) != quick_gelu or not _is_plain(config) or not is_accepted(name):
        return False
    own = _of_model(config)
    return all(own[what] == size for what, size in sizes.items())


def _is_plain(config: dict[str, Any]) -> bool:
    vision, text = config["vision_cfg"], config["text_cfg"]
    others = (
        "timm_model_name" in vision,
        "hf_model_name" in text,
        "multimodal_cfg" in config,
    )
    return not any(others) and isinstance(vision.get("layers"), int)


def _of_model(config: dict[str, Any]) -> Sizes:
    vision, text = open_clip.CLIPVisionCfg(**config["vision_cfg"]), open_clip.CLIPTextCfg(**config["text_cfg"])
    patch, image = _side(vision.patch_size), _side(vision.image_size)
    return {
        "patch size": patch,
        "image size": image // patch * patch,  # what the patches cover
        "context length": text.context_length + text.embed_cls,  # with a row for the class token
        "vocabulary": text.vocab_size,
        "image width": vision.width,
        "text width": text.width,
        "number of image layers": vision.layers,
        "number of text layers": text.layers,
        "embedding width": config["embed_dim"],
    }


def _side(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _of_state(state: Mapping[str, Tensor]) -> Sizes:
    shapes = {key.removeprefix("text."): tuple(value.shape) for key, value in state.items() if hasattr(value, "shape")}
    sizes: Sizes = {}
    if len(convolution := shapes.get("visual.conv1.weight", ())) == 4:
        sizes |= {"patch size": convolution[2], "image width": convolution[0]}
        if len(positions := shapes.get("visual.positional_embedding", ())) == 2:
            sizes["image size"] = math.isqrt(positions[0] - 1) * convolution[2]
    if len(positions := shapes.get("positional_embedding", ())) == 2:
        sizes["context length"] = positions[0]
    if len(tokens := shapes.get("token_embedding.weight", ())) == 2:
        sizes |= {"vocabulary": tokens[0], "text width": tokens[1]}
    if len(projection := shapes.get("text_projection", ())) == 2:
        sizes["embedding width"] = projection[1]
    for what, tower in (("number of image layers", "visual.transformer"), ("number of text layers", "transformer")):
        found = [re.match(rf"{tower}\.resblocks\.(\d+)\.", key) for key in shapes]
        if layers := [int(match[1]) for match in found if match]:
            sizes[what] = max(layers) + 1
    return sizes
