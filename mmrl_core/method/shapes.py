"""The shapes of an adapter's tensors, which card and backbone settle before any of them is read. Imports no PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from typing_extensions import TypedDict

from mmrl_core.config import AdapterConfig, parse
from mmrl_core.errors import Damaged, UserError
from mmrl_core.method.adapter_card import CARD, AdapterCard, HeadCard
from mmrl_core.protocols import BASELINES

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # by the tensors' names


TOWER = "tower"  # in the header of folded.safetensors: a TowerCard as JSON


class TowerCard(TypedDict):
    """What the weights of an image tower do not say, and a NumPy tower has to know."""

    heads: int
    activation: Literal["GELU", "QuickGELU"]
    eps: float  # of the layer norms
    size: int  # this and the rest are ViewSettings
    mean: list[float]
    std: list[float]
    resize_mode: str
    interpolation: str


class Measured(Protocol):
    """A backbone's name and measures."""

    @property
    def name(self) -> str: ...
    @property
    def depth(self) -> int: ...
    @property
    def image_width(self) -> int: ...
    @property
    def text_width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...


def insertion_layers(config: AdapterConfig, backbone: Measured) -> int:
    """Layers with tokens of either tower. Raises UserError where the insertion depth is beyond the backbone's."""
    n_insert = backbone.depth - config.insertion_depth + 1
    if n_insert < 1:
        raise UserError(
            f"adapter.insertion_depth {config.insertion_depth} is beyond the {backbone.depth} layers of "
            f"backbone {backbone.name}; choose 1 to {backbone.depth}"
        )
    return n_insert


def tensor_shapes(config: AdapterConfig, backbone: Measured) -> Shapes:
    """The shapes that the tensors of `Adapter(config, backbone)` have, without building it. Raises UserError as it."""
    n, d_r, plus = insertion_layers(config, backbone), config.rep_dim, config.method == "mmrlpp"
    shapes: dict[str, Shape] = {"space": (config.n_tokens, d_r)}
    for tower, width in (("image_aligner", backbone.image_width), ("text_aligner", backbone.text_width)):
        shapes |= {f"{tower}.weight": (width, d_r) if plus else (n, width, d_r), f"{tower}.bias": (n, width)}
        if plus:
            rank = config.residual_rank
            shapes |= {f"{tower}.A": (n, width, rank), f"{tower}.B": (n, rank, d_r)}
    if not plus:
        return shapes | {"projection.weight": (backbone.pooled_width, backbone.embed_dim)}
    rank = config.projection_rank
    return shapes | {"projection.A": (backbone.pooled_width, rank), "projection.B": (rank, backbone.embed_dim)}


def head_shapes(card: HeadCard, n_classes: int, embed_dim: int) -> dict[str, Shape]:
    """The shapes of the tensors that a head of this card has, by their names in an adapter's file."""
    if card["kind"] == "linear":
        return {"head.weight": (n_classes, embed_dim), "head.bias": (n_classes,)}
    return {"head.keys": (sum(card["rows"]), embed_dim)}


def card_shapes(folder: Path, card: AdapterCard, backbone: Measured) -> Shapes:
    """Those of all tensors that the adapter of a folder has. Raises Damaged for a depth that the backbone has not."""
    head = card.get("head")
    of_head = head_shapes(head, len(card["class_names"]), backbone.embed_dim) if head else {}
    if card["adapter"]["method"] in BASELINES:
        return of_head
    config = parse(AdapterConfig, card["adapter"], str(folder / CARD))
    try:
        return {**tensor_shapes(config, backbone), **of_head}
    except UserError as error:  # a depth that no adapter of this backbone was saved with
        raise Damaged(f"{folder / CARD}: {error}") from None


def folded_shapes(card: AdapterCard, backbone: Measured) -> Shapes:
    """Those of the tensors in the folded form of a sound card's adapter."""
    shapes: dict[str, Shape] = {"text_features": (len(card["class_names"]), backbone.embed_dim)}
    if card["adapter"]["method"] in BASELINES:
        return shapes
    config = parse(AdapterConfig, card["adapter"], CARD)
    layers = insertion_layers(config, backbone)
    return shapes | {
        "tokens": (layers, config.n_tokens, backbone.image_width),
        "projection": (backbone.pooled_width, backbone.embed_dim),
    }
