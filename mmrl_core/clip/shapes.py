"""The measures of a CLIP's towers, from its configuration alone: nothing is built, fetched or imported for them.

D a tower's width, L its rows (tokens of an image or a prompt). A timm image tower and a text tower of Hugging Face are
named in a configuration and no more: their measures, and how many parameters open_clip's architectures have, are in
assets/architectures.json, which `python -m benchmarks.support.architectures` writes.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mmrl_core.errors import UserError

MEASURES = Path(__file__).parent.parent / "assets" / "architectures.json"
CONTEXT, VOCABULARY, QUERIES = 77, 49408, 256  # open_clip's where a configuration is silent
WHOLE_PATCH = 14  # a plain tower's patch where none is named
Config = dict[str, Any]


class Tower(NamedTuple):
    """One tower. `mlp` is how many matrices (D, D) all of a layer's MLP is as large as: 8 of a plain one."""

    width: int  # D
    depth: int  # layers
    heads: int
    rows: int  # L: class token and patches; context length of a text
    hidden: int  # width within a layer's MLP
    gated: bool = False  # the MLP has three matrices, not two

    @property
    def mlp(self) -> float:
        return (3 if self.gated else 2) * self.hidden / self.width

    @property
    def layer_parameters(self) -> int:
        """Of one layer: norms, attention and MLP with their biases."""
        d, h = self.width, self.hidden
        return 4 * d + 4 * d * d + 4 * d + 2 * d * h + h + d + (d * h + h if self.gated else 0)


class Shape(NamedTuple):
    """What a CLIP's costs depend on. `image_parameters` and `text_parameters` are of the towers with their heads."""

    image: Tower
    text: Tower
    embed_dim: int  # E
    image_size: int  # pixels a side
    patch_size: int
    pooled_width: int  # what the image tower reads is as wide, before the projection
    causal: bool  # a word sees those before it alone, so that prompts share their beginning; CoCa's class row does not
    padded: bool  # the text tower reads padding up to its context length
    image_parameters: int
    text_parameters: int
    pools: bool = False  # the image tower reads all rows, not its class token alone

    @property
    def depth(self) -> int:
        """N of the shallower tower, on which insertion depths count."""
        return min(self.image.depth, self.text.depth)


@cache
def measured() -> dict[str, Any]:
    """`image`: timm towers; `text`: those of Hugging Face; `parameters`: of every architecture, image and text."""
    return json.loads(MEASURES.read_text())


def shape_of(config: Config) -> Shape:
    """Raises UserError for a configuration whose towers are no transformers, or none that are known here."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    embed = config["embed_dim"]
    image, patch, pooled, image_parameters = _image(vision, embed)
    words, text_parameters = _text(text, embed)
    by_hugging_face = "hf_model_name" in text
    causal = not (by_hugging_face or text.get("no_causal_mask") or text.get("embed_cls"))
    reads_padding = not causal and not by_hugging_face
    return Shape(
        image, words, embed, _side(vision.get("image_size", 224)), patch, pooled, causal, reads_padding,
        image_parameters, text_parameters, _pools(vision),
    )  # fmt: skip


def _pools(vision: Config) -> bool:
    if "timm_model_name" in vision:
        return vision.get("timm_pool", "avg") != "token"
    return bool(vision.get("attentional_pool")) or vision.get("pool_type", "tok") != "tok"


def parameters_of(name: str, config: Config) -> int | None:
    """How many an architecture has in both towers; None where that is not known without building it."""
    if counts := measured()["parameters"].get(name):
        return sum(counts)
    try:
        shape = shape_of(config)
    except UserError:
        return None
    return shape.image_parameters + shape.text_parameters


def _image(vision: Config, embed: int) -> tuple[Tower, int, int, int]:
    """The tower, its patch, the width of what it reads, its parameters."""
    if "timm_model_name" in vision:
        return _timm_image(vision, embed)
    layers, width = vision.get("layers", 12), vision.get("width", 768)
    if not isinstance(layers, int):
        raise UserError("its image tower is a ResNet, which has no layers that tokens could enter")
    patch, size = vision.get("patch_size") or WHOLE_PATCH, _side(vision.get("image_size", 224))
    rows, hidden = (size // patch) ** 2 + 1, int(width * vision.get("mlp_ratio", 4.0))
    tower = Tower(width, layers, width // vision.get("head_width", 64), rows, hidden)
    pooled = embed if vision.get("attentional_pool") else width
    scales = 2 * width * layers if vision.get("ls_init_value") is not None else 0
    norms = 2 * width * (not vision.get("no_ln_pre", False)) + 2 * pooled
    embedding = 3 * patch * patch * width + width + rows * width
    head = pooled * embed + (_attention_pool(vision, embed, width) if vision.get("attentional_pool") else 0)
    return tower, patch, pooled, embedding + norms + scales + layers * tower.layer_parameters + head


def _attention_pool(vision: Config, embed: int, width: int) -> int:
    """Parameters of CoCa's pooling: queries, attention from the embedding's width to the tower's, two norms."""
    queries = vision.get("attn_pooler_queries", QUERIES) * embed
    return queries + 2 * embed * embed + 2 * embed * width + 4 * embed + 2 * embed + 2 * width


def _timm_image(vision: Config, embed: int) -> tuple[Tower, int, int, int]:
    name, size = vision["timm_model_name"], _side(vision.get("image_size", 224))
    known = measured()["image"].get(name)
    if known is None:
        raise UserError(f"the measures of timm's {name} are not known here")
    rows = (size // known["patch"]) ** 2 + known["prefix"]
    tower = Tower(known["width"], known["depth"], known["heads"], rows, known["hidden"], known["gated"])
    heads = {None: (tower.width + 1) * embed, "linear": tower.width * embed}
    head = heads.get(vision.get("timm_proj"), 0)
    patches, positions = (size // known["patch"]) ** 2, known["positions"]
    more = (patches - positions) * tower.width if positions else 0  # of another image size than timm's
    return tower, known["patch"], tower.width, known["body"] + more + head


def _text(text: Config, embed: int) -> tuple[Tower, int]:
    """The tower and its parameters."""
    if "hf_model_name" in text:
        return _hugging_face_text(text, embed)
    width, layers = text.get("width", 512), text.get("layers", 12)
    rows = text.get("context_length", CONTEXT) + bool(text.get("embed_cls"))
    tower = Tower(width, layers, text.get("heads", 8), rows, int(width * text.get("mlp_ratio", 4.0)))
    scales = 2 * width * layers if text.get("ls_init_value") is not None else 0
    embeddings = (text.get("vocab_size", VOCABULARY) + rows + bool(text.get("embed_cls"))) * width
    has_projection = text.get("proj_type", "linear") != "none"
    head = (width * embed + embed * bool(text.get("proj_bias"))) if has_projection else 0
    return tower, embeddings + scales + layers * tower.layer_parameters + 2 * width + head


def _hugging_face_text(text: Config, embed: int) -> tuple[Tower, int]:
    known = measured()["text"].get(text["hf_model_name"])
    if known is None:
        raise UserError(f"the measures of Hugging Face's {text['hf_model_name']} are not known here")
    width, rows = known["width"], text.get("context_length", CONTEXT)
    tower = Tower(width, known["depth"], known["heads"], rows, known["hidden"], known["gated"])
    return tower, known["body"] + hugging_face_head(text, width, embed)


def hugging_face_head(text: Config, width: int, embed: int) -> int:
    """Parameters of open_clip's projection: one matrix, or an MLP whose inner width is half of both together."""
    is_linear = text.get("hf_proj_type", "mlp") == "linear"
    return width * embed if is_linear else (width + embed) // 2 * (width + embed)


def _side(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
