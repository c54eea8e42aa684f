"""The adapter: every learnable tensor of MMRL or MMRL++, and its files (safetensors + JSON)."""

import hashlib
import os
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from mmrl_core.clip.backbone import Backbone, check_measures, load_backbone, measures
from mmrl_core.clip.weights.places import DIRECTORY
from mmrl_core.config import AdapterConfig, BaselineConfig, parse
from mmrl_core.errors import UserError
from mmrl_core.files import write_bytes, write_json
from mmrl_core.method.adapter_card import (
    CARD,
    FOLDED,
    TENSORS,
    AdapterCard,
    CalibrationCard,
    CardContent,
    CardOfTensors,
    HeadCard,
    card_problem,
    card_sha256,
    read_card,
)
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.heads import Head, empty_head
from mmrl_core.method.logit_weights import LogitWeights, logit_weights
from mmrl_core.method.published_checkpoints import to_adapter_state
from mmrl_core.method.representation import FreeProjection, LinearAligner, ResidualProjection, SharedResidualAligner
from mmrl_core.method.shapes import card_shapes, insertion_layers
from mmrl_core.method.tensor_file import not_finite, read_tensors
from mmrl_core.protocols import BASELINES


class Adapter(nn.Module):
    """The shared space, one aligner a tower and the projection of the representation features; nothing else.

    Raises UserError when the insertion depth lies beyond the backbone's shallower tower.
    """

    def __init__(self, config: AdapterConfig, backbone: Backbone):
        super().__init__()
        self.config, self.n_insert = config, insertion_layers(config, backbone)
        self.made_for = measures(backbone)
        self.space = nn.Parameter(torch.randn(config.n_tokens, config.rep_dim) * 0.02)
        self.image_aligner = self._aligner(backbone.image_width)
        self.text_aligner = self._aligner(backbone.text_width)
        self.projection = self._projection(backbone.pooled_width, backbone.embed_dim)
        self.head: Head | None = None  # fitted once the adapter is trained
        self.head_card: HeadCard | None = None
        self.calibration: CalibrationCard | None = None

    def _aligner(self, width: int) -> LinearAligner | SharedResidualAligner:
        config = self.config
        if config.method == "mmrl":
            return LinearAligner(self.n_insert, width, config.rep_dim)
        return SharedResidualAligner(self.n_insert, width, config.rep_dim, config.residual_rank)

    def _projection(self, width: int, embed_dim: int) -> FreeProjection | ResidualProjection:
        if self.config.method == "mmrl":
            return FreeProjection(width, embed_dim)
        return ResidualProjection(width, embed_dim, self.config.projection_rank)

    def image_tokens(self) -> Tensor:
        """Tokens of every insertion layer of the image tower (n_insert, K, d_v)."""
        return self.image_aligner(self.space)

    def text_tokens(self) -> Tensor:
        """Tokens of every insertion layer of the text tower (n_insert, K, d_t)."""
        return self.text_aligner(self.space)

    def fused(self, by_class: Tensor, by_rep: Tensor) -> Tensor:
        """Logits of both branches (B, C), weighted by alpha."""
        return self.alpha * by_class + (1 - self.alpha) * by_rep

    @property
    def weights(self) -> LogitWeights:
        """How its logits and its head's give what is predicted."""
        return logit_weights(self.head_card, self.calibration)

    @property
    def alpha(self) -> float:
        """Weight of the class branch."""
        return self.config.alpha

    @property
    def reg_weight(self) -> float:
        """Weight of the distance to the frozen features."""
        return self.config.reg_weight

    @property
    def n_trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(tensor.numel() for tensor in self.parameters())

    def check_fits(self, backbone: Backbone) -> None:
        """Raise UserError unless the adapter was made for a backbone of these widths and this depth."""
        check_measures(self.made_for, backbone)

    def load_published(self, state_dict: dict[str, Tensor]) -> None:
        """Take over the learnable tensors of the authors' code, by their names; other tensors are passed over."""
        state = to_adapter_state(state_dict, self.config.method)
        for name, tensor in self.state_dict().items():
            shape = tuple(state[name].shape) if name in state else "nothing"
            if shape != tensor.shape:
                raise UserError(
                    f"adapter tensor {name} is {tuple(tensor.shape)} but the published checkpoint has {shape}; "
                    f"use the adapter settings and backbone that belong together"
                )
            if not state[name].is_floating_point():
                raise UserError(f"the published checkpoint has whole numbers as tensor {name}; is it one of MMRL?")
        if broken := not_finite(state):
            raise UserError(f"tensor {broken} of the published checkpoint has values that are no finite numbers")
        self.load_state_dict(state)


def save_adapter(folder: str | Path, adapter: Adapter | Baseline, backbone: Backbone, card: CardContent) -> AdapterCard:
    """Write adapter.safetensors and adapter.json; returns the JSON document. Raises UserError for what could not be
    loaded again, such as weights that are no finite numbers.

    Beside them lies folded.safetensors, with which NumPy predicts (`light/`), where it covers the backbone.
    """
    from mmrl_core.method.folded import folded_bytes

    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in adapter.state_dict().items()}
    content = safetensors.torch.save(tensors)
    document: AdapterCard = {
        "kind": "adapter",
        "sha256": hashlib.sha256(content).hexdigest(),
        "trainable": adapter.n_trainable,
        "adapter": adapter.config.model_dump(),
        "backbone": {
            "name": backbone.name,
            "weights": backbone.weights,
            "sha256": backbone.weights_sha256,
            "file_sha256": backbone.weights_file_sha256,
        },
        **card,
        "head": adapter.head_card,
        "calibration": adapter.calibration,
        "card_sha256": "",
    }
    _check_loadable(tensors, document)
    if folded := folded_bytes(backbone, adapter, card["class_names"], card["template"]):
        document["folded_sha256"] = hashlib.sha256(folded).hexdigest()
        write_bytes(Path(folder) / FOLDED, folded)
    document["card_sha256"] = card_sha256(document)
    write_bytes(Path(folder) / TENSORS, content)
    write_json(Path(folder) / CARD, document)
    return document


def _check_loadable(tensors: dict[str, Tensor], document: AdapterCard) -> None:
    if problem := card_problem(document):
        raise UserError(f"the adapter cannot be saved: {problem}")
    if broken := not_finite(tensors):
        raise UserError(f"the adapter cannot be saved: tensor {broken} has values that are no finite numbers")


def backbone_of(card: AdapterCard, *, device: str | torch.device = "cpu") -> Backbone:
    """The backbone that an adapter was trained on, by its card. Raises UserError when it is not to be had."""
    named = card["backbone"]
    _check_folder(named["name"])
    return load_backbone(named["name"], named["weights"], device=device, sha256=named["sha256"])


def _check_folder(name: str) -> None:
    """Raises UserError for a backbone's folder that is gone: the card cannot be corrected, so it has to be put back."""
    place = os.path.expanduser(name.removeprefix(DIRECTORY))
    if name.startswith(DIRECTORY) and not os.path.isdir(place):
        raise UserError(
            f"the adapter was trained on backbone {name}, and {os.path.abspath(place)} is no folder; put that CLIP, or "
            f"a link to it, there" + ("" if os.path.isabs(place) else ", or run this in the folder where it is")
        )


def load_adapter(folder: str | Path, backbone: Backbone) -> tuple[Adapter | Baseline, AdapterCard]:
    """Read an adapter, or a baseline, and its card, verifying all that they say before anything is built.

    Raises Damaged unless both files are what `save_adapter` writes, UserError where one is missing and for another
    backbone.
    """
    folder, card = Path(folder), read_card(folder)
    if not backbone.gives_what(card["backbone"]["sha256"], card["class_names"], card["template"]):
        raise UserError(
            f"{folder} was trained on backbone {card['backbone']['name']} with weights "
            f"{card['backbone']['sha256'][:12]}, not on {backbone.name} with {backbone.weights_sha256[:12]}; "
            f"load that backbone or train a new adapter"
        )
    state = read_tensors(folder / TENSORS, card_shapes(folder, card, backbone), card["sha256"])
    adapter = new_adapter(card, backbone)
    adapter.load_state_dict(state)
    return adapter.to(backbone.device), card


def new_adapter(card: CardOfTensors, backbone: Backbone) -> Adapter | Baseline:
    """An adapter or a baseline as a card says, whose tensors are still to be filled."""
    card_of_head = card.get("head")
    head = empty_head(card_of_head, len(card["class_names"]), backbone.embed_dim) if card_of_head else None
    adapter: Adapter | Baseline
    if card["adapter"]["method"] in BASELINES:
        assert head and card_of_head  # card_problem
        adapter = Baseline(parse(BaselineConfig, card["adapter"], "adapter"), backbone, head, card_of_head)
    else:
        adapter = Adapter(parse(AdapterConfig, card["adapter"], "adapter"), backbone)
        adapter.head, adapter.head_card = head, card_of_head
    adapter.calibration = card.get("calibration")
    return adapter
