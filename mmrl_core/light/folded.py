"""An adapter's form for inference, read from its folder: what method/folded.py computes, in NumPy.

C classes, E embedding width, K representation tokens, D the image tower's width, S side of the view in pixels.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import safetensors.numpy

from mmrl_core.clip import LOGIT_SCALE
from mmrl_core.clip.weights.preprocessing import check_preprocessing
from mmrl_core.config import AdapterConfig, parse
from mmrl_core.data.squares import ViewSettings
from mmrl_core.errors import Damaged, UserError
from mmrl_core.files import wrong_entry
from mmrl_core.light.backbone import LightBackbone
from mmrl_core.light.tower import LightTower, normalised, tower_shapes
from mmrl_core.method.adapter_card import CARD, FOLDED, TENSORS, AdapterCard
from mmrl_core.method.logit_weights import logit_weights
from mmrl_core.method.shapes import TOWER, Shapes, TowerCard, card_shapes, folded_shapes
from mmrl_core.method.tensor_header import checked_bytes, refuse_infinite
from mmrl_core.parsing import parse_json
from mmrl_core.protocols import BASELINES

LARGEST_SIDE = 10**4  # pixels


class Logits(NamedTuple):
    """Of one image: cosines with w times LOGIT_SCALE, and the logits of trained classes (C,)."""

    by_class: np.ndarray
    trained: np.ndarray


class LightCLIP:
    """Scores views (3, S, S) among the trained classes."""

    def __init__(self, card: AdapterCard, tensors: Mapping[str, np.ndarray], tower: LightTower):
        self.tower, self.tensors = tower, tensors
        self.head, self.weights = card.get("head"), logit_weights(card.get("head"), card.get("calibration"))
        self.alpha, self.beta = 1.0, 1.0
        if card["adapter"]["method"] not in BASELINES:
            config = parse(AdapterConfig, card["adapter"], CARD)
            self.alpha, self.beta = config.alpha, config.composition

    @np.errstate(all="ignore")  # of tensors that are finite but too large; PyTorch says nothing of them either
    def logits(self, view: np.ndarray) -> Logits:
        """Of (3, S, S)."""
        trunk = self.tower.trunk(view)
        frozen = self.tower.frozen(trunk) if "tokens" not in self.tensors or self.weights.head else None
        f_c, f_r = self._features(trunk, frozen)
        w = self.tensors["text_features"]
        by_class, by_rep = LOGIT_SCALE * w @ f_c, LOGIT_SCALE * w @ f_r
        trained = self.weights.adapter * (self.alpha * by_class + (1 - self.alpha) * by_rep)
        if self.weights.head and frozen is not None:
            trained = trained + self.weights.head * self._of_head(frozen)
        return Logits(by_class, trained)

    def _features(self, trunk: np.ndarray, frozen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """f_c and f_r (E,), L2-normalised; of a baseline both are the frozen CLIP's."""
        if "tokens" not in self.tensors:
            assert frozen is not None
            return frozen, frozen
        cls, slots = self.tower.adapted(trunk, self.tensors["tokens"], self.beta)
        f_c = normalised(cls @ self.tower.arrays["proj"])
        return f_c, normalised(slots.mean(axis=0) @ self.tensors["projection"])

    def _of_head(self, frozen: np.ndarray) -> np.ndarray:
        """The head's logits (C,) from the frozen CLIP's features (E,)."""
        assert self.head
        if self.head["kind"] == "linear":
            return self.tensors["head.weight"] @ frozen + self.tensors["head.bias"]
        votes = np.exp(self.head["sharpness"] * (self.tensors["head.keys"] @ frozen - 1))
        labels = np.repeat(np.arange(len(self.head["rows"])), self.head["rows"])
        return np.bincount(labels, votes, minlength=len(self.head["rows"]))


def read_folded(folder: Path, card: AdapterCard, backbone: LightBackbone) -> tuple[LightCLIP, ViewSettings] | None:
    """The model of a folder that has a folded.safetensors, and how it wants images. None for weights of another kind of
    image tower.

    Raises Damaged unless the adapter's files are what `save_adapter` wrote, UserError where the adapter is missing.
    """
    tensors = _arrays(folder / TENSORS, card_shapes(folder, card, backbone), card["sha256"])
    path, shapes = folder / FOLDED, folded_shapes(card, backbone)
    content = checked_bytes(path, shapes, card["folded_sha256"])
    facts = _tower_card(path, content, backbone)
    if {name: array.shape for name, array in backbone.visual.items()} != tower_shapes(backbone.visual, facts["size"]):
        return None
    tensors |= _arrays(path, shapes, card["folded_sha256"])
    n_insert = len(tensors["tokens"]) if "tokens" in tensors else 1
    view = ViewSettings(facts["size"], facts["mean"], facts["std"], facts["resize_mode"], facts["interpolation"])
    return LightCLIP(card, tensors, LightTower(backbone.visual, facts, n_insert)), view


def _arrays(path: Path, shapes: Shapes, sha256: str) -> dict[str, np.ndarray]:
    arrays = safetensors.numpy.load(checked_bytes(path, shapes, sha256))
    refuse_infinite(path, next((name for name, array in arrays.items() if not np.isfinite(array).all()), None))
    return arrays


def _tower_card(path: Path, content: bytes, backbone: LightBackbone) -> TowerCard:
    """What the file's header says of the image tower. Raises Damaged for what no tower of this backbone has."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # checked_bytes has read it
    try:
        facts = parse_json(header.get("__metadata__", {})[TOWER])
    except (KeyError, ValueError) as error:
        raise Damaged(f"{path} does not say what image tower it is for ({error}); make it again") from None
    if problem := _problem(facts, backbone.image_width):
        raise Damaged(f"{path}: {problem}; make it again")
    return cast(TowerCard, facts)


def _problem(facts: object, width: int) -> str | None:
    if not isinstance(facts, dict) or facts.keys() != TowerCard.__annotations__.keys():
        return "what it says of its image tower has other entries"
    if wrong := wrong_entry(facts, TowerCard):
        return wrong
    if not (0 < facts["size"] <= LARGEST_SIDE and facts["heads"] > 0 and width % facts["heads"] == 0):
        return "no image tower has such a size or so many heads"
    if not 0 < facts["eps"] < 1:
        return "eps is no small number"
    try:
        check_preprocessing(facts, "it")
    except UserError as error:
        return str(error)
    return None
