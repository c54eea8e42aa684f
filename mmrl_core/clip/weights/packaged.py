"""CLIPs that come with their configuration, as `hf-hub:org/name` or `local-dir:PATH`: in open_clip's layout or in that
of transformers. First the configuration is read and judged, then the tokenizer made, and only then are weights read or
fetched. Sizes, activation, tokenizer and the preparation of images are all from there.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrl_core.clip.openclip import CLIP, open_clip
from mmrl_core.clip.supported import refuse_by_configuration
from mmrl_core.clip.weights.building import LoadedCLIP, is_random, new_model, random_model
from mmrl_core.clip.weights.places import Place, place_of, read_object
from mmrl_core.clip.weights.preprocessing import preprocessing
from mmrl_core.clip.weights.published import check_digest
from mmrl_core.clip.weights.sizes import check_sizes
from mmrl_core.clip.weights.state import (
    check_fit,
    fill,
    in_one_line,
    misfit,
    read_content,
    read_state,
    tensors_of,
    unwrapped,
)
from mmrl_core.clip.weights.tokenizers import of_transformers, tokenizer_of
from mmrl_core.clip.weights.transformers_config import open_clip_config, trunk_settings
from mmrl_core.clip.weights.transformers_images import preprocess_config
from mmrl_core.clip.weights.transformers_tensors import renamed
from mmrl_core.clip.weights.weight_files import CONFIGURATION, OPEN_CLIP, TRANSFORMERS, digest_of, weight_files
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json, sha256_file


class Described(NamedTuple):
    """What the configuration of a place says: its layout (`open_clip` or a model_type of transformers), open_clip's
    model_cfg, how images are prepared, and what timm has to be told of an image tower."""

    layout: str
    config: dict[str, Any]
    pixels: dict[str, Any]
    trunk: dict[str, Any] | None


def load_packaged(name: str, weights: str | None) -> LoadedCLIP:
    """The CLIP of `hf-hub:org/name` or `local-dir:PATH` with its own weights, or `random` ones. Raises UserError for a
    place that cannot be had, for one whose configuration the method does not cover, and for weights that do not fit."""
    place = place_of(name)
    if weights and not is_random(weights):
        raise UserError(f"backbone.weights is {weights!r}, but {name} comes with its own; leave it null")
    described = describe(place)
    refuse_by_configuration(name, described.config)
    tokenizer = tokenizer_of(described.config["text_cfg"], name, place)
    clip, sha256 = _random(name, described, weights), None
    if clip is None:
        files = weight_files(place, OPEN_CLIP if described.layout == OPEN_CLIP else TRANSFORMERS)
        sha256 = _digest(files)
        clip = _filled(name, described, files)
    clip.visual.preprocess_cfg = {**getattr(clip.visual, "preprocess_cfg", {}), **described.pixels}
    return LoadedCLIP(clip.eval(), sha256, tokenizer, _configuration_sha256(place, described))


def _configuration_sha256(place: Place, described: Described) -> str:
    """Digest of all that features depend on beside the weights: sizes, activations, preparation of images, tokenizer.
    Where the folder lies has no part in it."""
    text_cfg = dict(described.config["text_cfg"])
    tokens = None
    if text_cfg.get("hf_tokenizer_name"):
        path = place.file("tokenizer.json") or place.file("spiece.model")
        tokens = sha256_file(path) if path else None
    if text_cfg.get("hf_tokenizer_name") == place.source:
        del text_cfg["hf_tokenizer_name"]
    facts = {**described._asdict(), "config": {**described.config, "text_cfg": text_cfg}, "tokens": tokens}
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def describe(place: Place) -> Described:
    """What the configuration of a place says; nothing else of it is read or fetched. Raises UserError for none, and for
    one that says nothing that open_clip could build."""
    if path := place.file(CONFIGURATION):
        content = read_object(path)
        config = _checked(content.get("model_cfg"), path)
        pixels = content.get("preprocess_cfg") or {}
        if not isinstance(pixels, dict):
            raise UserError(f"{path}: preprocess_cfg is no object; fetch or save it again")
        return Described(OPEN_CLIP, config, preprocessing(pixels, None, str(path)), None)
    if path := place.file("config.json"):
        return _of_transformers(place, path)
    raise place.lacks(f"neither {CONFIGURATION} nor a config.json of transformers")


def _of_transformers(place: Place, path: Path) -> Described:
    content = read_object(path)
    config, kind = open_clip_config(content, str(path)), content["model_type"]
    config["text_cfg"] = of_transformers(place, config, kind)
    processor = place.file("preprocessor_config.json") or place.file("processor_config.json")
    stated = read_object(processor) if processor else None
    pixels = preprocess_config(stated, kind, config["vision_cfg"]["image_size"], str(processor or path))
    trunk = trunk_settings(content, str(path)) if kind == "siglip" else None
    return Described(kind, config, preprocessing(pixels, None, str(processor or path)), trunk)


def _checked(config: Any, path: Path) -> dict[str, Any]:
    """A model_cfg from elsewhere, whose parts open_clip knows and which are of its types."""
    from pydantic import TypeAdapter, ValidationError

    parts = {"vision_cfg": open_clip.CLIPVisionCfg, "text_cfg": open_clip.CLIPTextCfg}
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in parts):
        raise UserError(f"{path} has no model_cfg with vision_cfg and text_cfg; fetch or save it again")
    if type(config.get("embed_dim")) is not int:
        raise UserError(f"{path}: embed_dim is no whole number; fetch or save it again")
    _refuse_other_sources(config, path)
    for part, kind in parts.items():
        try:
            kind(**config[part])
            stated = {key: value for key, value in config[part].items() if value is not getattr(kind, key)}
            TypeAdapter(kind).validate_python(stated)
        except TypeError as error:
            raise UserError(f"{path}: {error}; it is of another release of open_clip than is installed") from None
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)[0]
            raise UserError(
                f"{path}: {part}.{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}; fetch or save it again"
            ) from None
    return config


def _refuse_other_sources(config: Mapping[str, Any], path: Path) -> None:
    """UserError for towers that timm or transformers would have to look for elsewhere, where code may lie as well."""
    timm, theirs = config["vision_cfg"].get("timm_model_name"), config["text_cfg"].get("hf_model_name")
    own = [open_clip.get_model_config(name)["text_cfg"].get("hf_model_name") for name in open_clip.list_models()]
    elsewhere = timm if any(sign in str(timm) for sign in ":/\\") else theirs if theirs not in own else None
    if elsewhere:
        raise UserError(
            f"{path} names the tower {str(elsewhere)[:80]!r}, which no model of open_clip's has; take one of those"
        )


def _random(name: str, described: Described, weights: str | None) -> CLIP | None:
    return random_model(name, described.config, weights, described.trunk) if weights else None


def _digest(files: list[Path]) -> str:
    digests = [sha256_file(path) for path in files]
    for path, digest in zip(files, digests, strict=True):
        check_digest(path, digest)
    return digest_of(digests)


def _filled(name: str, described: Described, files: list[Path]) -> CLIP:
    with in_one_line(f"the weights {files[0]} of {name} do not load"):
        state = _state(described, files)
        check_sizes(name, described.config, str(files[0]), state)
        if described.trunk:
            _check_trunk(described.trunk, state)
        else:
            with torch.device("meta"):  # a damaged configuration may ask for all of the memory
                check_fit(new_model(described.config), state)
        clip = new_model(described.config, described.trunk)
        fill(clip, state)
    return clip


def _check_trunk(trunk: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless the image tower that timm would build has the sizes of its weights."""
    width, patch, last = trunk["embed_dim"], trunk["patch_size"], trunk["depth"] - 1
    sizes = {"visual.trunk.patch_embed.proj.weight": (width, 3, patch, patch),
             "visual.trunk.pos_embed": (1, (trunk["img_size"] // patch) ** 2, width),
             f"visual.trunk.blocks.{last}.mlp.fc1.weight": (int(width * trunk["mlp_ratio"]), width)}  # fmt: skip
    found = {name: tuple(state[name].shape) for name in sizes if name in state}
    if problem := misfit(found, sizes):
        raise ValueError(problem)


def _state(described: Described, files: list[Path]) -> Mapping[str, Tensor]:
    if described.layout == OPEN_CLIP:
        return read_state(files[0]).tensors
    tensors: dict[str, Tensor] = {}
    for path in files:
        found = tensors_of(read_content(path))
        if twice := sorted(tensors.keys() & found.keys()):
            raise ValueError(f"two shards have {twice[0]}")
        tensors |= found
    return renamed(unwrapped(tensors), described.layout)
