"""The architectures that open_clip knows, as far as they can be told from their configurations: nothing is built."""

import difflib
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from mmrl_core.clip import bundled
from mmrl_core.clip.openclip import open_clip
from mmrl_core.clip.shapes import CONTEXT, Config, parameters_of, shape_of
from mmrl_core.clip.supported import problem_of
from mmrl_core.clip.weights.licences import Licence, licence_of
from mmrl_core.clip.weights.packaged import describe
from mmrl_core.clip.weights.places import DIRECTORY, place_of
from mmrl_core.errors import UserError

# What people call them, by the beginning or a part of open_clip's name; the first that holds.
BEGINNINGS = {
    "coca_": "CoCa", "convnext": "ConvNeXt", "EVA01": "EVA-01", "EVA02": "EVA-02", "MobileCLIP2": "MobileCLIP 2",
    "MobileCLIP": "MobileCLIP", "mt5": "CLIP with mT5", "nllb": "NLLB-CLIP", "PE-Core": "Perception Encoder",
    "RN": "CLIP with a ResNet", "roberta": "CLIP with RoBERTa", "xlm-roberta": "CLIP with XLM-R", "ViTamin": "ViTamin",
    "swin": "CLIP with a Swin", "vit_": "CLIP with timm's ViT",
}  # fmt: skip
PARTS = {"SigLIP2": "SigLIP 2", "SigLIP": "SigLIP", "CLIPA": "CLIPA", "worldwide": "MetaCLIP 2"}


class Tag(NamedTuple):
    """Published weights of an architecture, and under which licence they are."""

    name: str
    licence: Licence


class Architecture(NamedTuple):
    """A row of the catalogue. `problem` is None where the method adapts it; widths and depths are None where the towers
    have no layers that tokens could enter, and the tokenizer is None where it is CLIP's."""

    name: str
    family: str
    problem: str | None
    parameters: int | None  # of both towers
    image_size: int  # pixels a side
    image: tuple[int, int] | None  # width, depth
    text: tuple[int, int] | None
    context: int  # tokens of a prompt
    tokenizer: str | None
    tags: tuple[Tag, ...]


def family_of(name: str) -> str:
    """What people call the kind of model."""
    for beginning, family in BEGINNINGS.items():
        if name.startswith(beginning):
            return family
    return next((family for part, family in PARTS.items() if part in name), "CLIP")


def config_of(name: str) -> Config | None:
    """Of `tiny`, a folder or an architecture of open_clip; None of any other name, since nothing is fetched. Raises
    UserError for a folder without a configuration that is read here."""
    if name == bundled.NAME:
        return bundled.bundled_file().card["model_cfg"]
    if name.startswith(DIRECTORY):
        return describe(place_of(name)).config
    return open_clip.get_model_config(name) if name in open_clip.list_models() else None


def architecture(name: str) -> Architecture:
    """One of `open_clip.list_models()`."""
    config = open_clip.get_model_config(name)
    problem, image, text = problem_of(config), None, None
    try:
        shape = shape_of(config)
        image, text = (shape.image.width, shape.image.depth), (shape.text.width, shape.text.depth)
    except UserError:
        pass  # `problem` says what is the matter with its towers
    tags = [Tag(tag, licence_of(name, tag)) for tag in open_clip.list_pretrained_tags_by_model(name)]
    return Architecture(
        name, family_of(name), problem, parameters_of(name, config), _image_size(config), image, text,
        config["text_cfg"].get("context_length", CONTEXT), _tokenizer(config), tuple(tags),
    )  # fmt: skip


def _image_size(config: Config) -> int:
    size = config["vision_cfg"].get("image_size", 224)
    return size if isinstance(size, int) else size[0]


def _tokenizer(config: Config) -> str | None:
    text: dict[str, Any] = config["text_cfg"]
    return text.get("hf_tokenizer_name") or text.get("hf_model_name")


def catalogue(pattern: str | None = None) -> list[Architecture]:
    """All architectures, or those whose name or family has the pattern in it, in whatever case; with * or ? it is one
    of the whole name. Raises UserError where none has."""
    rows = [architecture(name) for name in open_clip.list_models() if pattern is None or _matches(pattern, name)]
    if not rows:
        near = difflib.get_close_matches(str(pattern), open_clip.list_models(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "; `mmrl backbones` lists them"
        raise UserError(f"no architecture of open_clip is like {pattern!r}{hint}")
    return rows


def _matches(pattern: str, name: str) -> bool:
    wanted, own = pattern.lower(), name.lower()
    if any(sign in wanted for sign in "*?["):
        return fnmatchcase(own, wanted)
    return wanted in own or wanted in family_of(name).lower()
