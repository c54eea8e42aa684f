"""adapter.json, the card beside an adapter's tensors: its keys and how it is read. Imports no PyTorch."""

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeGuard, cast

from typing_extensions import TypedDict

from mmrl_core.errors import Damaged, UserError
from mmrl_core.files import canonical_json, read_json, sha256_file, wrong_entry
from mmrl_core.protocols import BASELINES

CARD, TENSORS, FOLDED = "adapter.json", "adapter.safetensors", "folded.safetensors"
LARGEST_CACHE = 10**6  # images of a class
LARGEST = 10**4  # weight, temperature or sharpness, and the smallest temperature's inverse: logits stay numbers


class DataCard(TypedDict):
    """What an adapter was trained on: a few-shot set, or the checkpoint that it was imported from."""

    digest: str
    dataset: NotRequired[str]
    method: NotRequired[str]
    shots: NotRequired[int]
    seed: NotRequired[int]
    images: NotRequired[int]
    imported_from: NotRequired[str]  # the checkpoint's file name


class BackboneCard(TypedDict):
    name: str
    weights: str | None
    sha256: str  # of the weights by name and value
    file_sha256: NotRequired[str | None]  # of the file that they came from


class AbstainCard(TypedDict):
    """The threshold below which the answer is "none of these", see evaluation/abstain.py."""

    confidence: str
    keep: float
    threshold: float
    images: NotRequired[int]  # of validation, that it was set on


class HeadCard(TypedDict):
    """What adapter.json says under "head"."""

    kind: Literal["linear", "cache"]
    adapter_weight: float  # of the adapter's own logits for trained classes
    head_weight: float  # of the head's
    images: int  # of few-shot validation, that the weights were chosen on
    inverse_regularization: NotRequired[float]  # C of the logistic regression
    sharpness: NotRequired[float]  # beta of Tip-Adapter
    rows: NotRequired[list[int]]  # cached images of each class


class CalibrationCard(TypedDict):
    """What adapter.json says under "calibration": temperatures that logits are divided by."""

    trained: float  # of trained classes
    other: float  # of other classes
    without_probe: NotRequired[float]  # of trained classes where the probe is left out
    images: int  # of few-shot validation


class CardContent(TypedDict):
    """What the caller of `save_adapter` says of an adapter: what prediction needs, and what the pipeline adds."""

    class_names: list[str]
    template: str
    method_version: NotRequired[int]
    data: NotRequired[DataCard]
    settings: NotRequired[dict[str, Any]]  # by dotted key, such as train.lr
    sources: NotRequired[dict[str, str]]  # where each setting came from
    training: NotRequired[dict[str, Any]]  # of the protocol; an imported adapter has none
    history: NotRequired[list[dict[str, float]]]  # each epoch's metrics
    abstain: NotRequired[AbstainCard | None]  # None: there were no validation images


class CardOfTensors(TypedDict):
    """What the tensors' shapes and their use follow from."""

    adapter: dict[str, Any]  # the fields of AdapterConfig, or of BaselineConfig
    class_names: list[str]
    head: NotRequired[HeadCard | None]
    calibration: NotRequired[CalibrationCard | None]


class AdapterCard(CardContent):
    """The whole document."""

    schema_version: NotRequired[int]  # in the file alone
    kind: str  # "adapter"
    sha256: str  # of adapter.safetensors
    trainable: int  # parameters
    adapter: dict[str, Any]  # the fields of AdapterConfig, or of BaselineConfig
    head: NotRequired[HeadCard | None]
    calibration: NotRequired[CalibrationCard | None]
    backbone: BackboneCard
    folded_sha256: NotRequired[str]  # of folded.safetensors; older releases wrote none
    card_sha256: str


def card_sha256(card: Mapping[str, object]) -> str:
    """Digest of all that the card says, itself and the file format apart."""
    content = {key: value for key, value in card.items() if key not in ("schema_version", "card_sha256")}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def read_unverified_card(folder: str | Path, *, made_by: str, keys: Iterable[str] = ()) -> AdapterCard:
    """The adapter.json of a folder, its digest unchecked; `made_by`, `keys` and what it raises are `read_json`'s."""
    return cast(AdapterCard, read_json(Path(folder) / CARD, made_by=made_by, keys=keys, shape=AdapterCard))


def read_card(folder: str | Path) -> AdapterCard:
    """The adapter.json of a folder. Raises Damaged when altered, of another kind or not a card that prediction can rely
    on, UserError when missing."""
    path = Path(folder) / CARD
    card = cast(AdapterCard, read_json(path, made_by="mmrl train"))
    if card.get("kind") != "adapter":
        raise Damaged(f"{path} does not describe an adapter; point at a folder that `mmrl train` wrote")
    if card.get("card_sha256") != card_sha256(card):
        raise Damaged(f"{path} does not match its own card_sha256; it was altered, train it again")
    if problem := card_problem(card):
        raise Damaged(f"{path}: {problem}; train it again")
    return card


def card_problem(card: Mapping[str, Any]) -> str | None:
    """What is wrong with the entries that prediction relies on; None when they are sound. Others may be missing: older
    releases and imports leave them out."""
    if not _is_sha256(card.get("sha256")):
        return "sha256 is no sha256 in hexadecimal digits"
    if not isinstance(card.get("trainable"), int) or not isinstance(card.get("data", {}), dict):
        return "trainable is no number, or data no object"
    return (
        _classes_problem(card.get("class_names"), card.get("template"))
        or _backbone_problem(card.get("backbone"))
        or _abstain_problem(card.get("abstain"))
        or _adapter_problem(card.get("adapter"))
        or wrong_entry(card, AdapterCard)
        or _head_problem(card)
        or _calibration_problem(card.get("calibration"))
    )


def _classes_problem(class_names: object, template: object) -> str | None:
    """The same name twice is let through: ImageNet's class list has some."""
    if not isinstance(class_names, list) or not all(isinstance(name, str) and name for name in class_names):
        return "class_names is no list of names"
    if len(set(class_names)) < 2:
        return "class_names holds fewer than two classes, which leaves nothing to choose"
    if not isinstance(template, str) or "{}" not in template:
        return "template is no text with {} for the class name"
    return None


def _backbone_problem(backbone: object) -> str | None:
    if not isinstance(backbone, dict) or not isinstance(backbone.get("name"), str):
        return "backbone has no name"
    if not isinstance(backbone.get("weights", 0), str | None):
        return "backbone.weights is neither text nor null"
    return None if _is_sha256(backbone.get("sha256")) else "backbone.sha256 is no sha256 in hexadecimal digits"


def _abstain_problem(abstain: object) -> str | None:
    if abstain is None:
        return None
    if not isinstance(abstain, dict) or not isinstance(abstain.get("confidence"), str):
        return "abstain does not say of which confidence it is"
    keep, threshold = abstain.get("keep"), abstain.get("threshold")
    if not (is_number(keep) and 0 < keep <= 1):
        return f"abstain.keep is {keep!r}, no share above 0 and up to 1"
    return None if is_number(threshold) else f"abstain.threshold is {threshold!r}, no number"


def _head_problem(card: Mapping[str, Any]) -> str | None:
    head = card.get("head")
    if head is None:
        return "it is of a baseline and has no head" if card["adapter"]["method"] in BASELINES else None
    if not all(is_number(head[name]) and 0 <= head[name] <= LARGEST for name in ("adapter_weight", "head_weight")):
        return f"head has a weight that is no number from 0 to {LARGEST}"
    if head["kind"] == "linear":
        return None
    rows, sharpness = head.get("rows", []), head.get("sharpness")
    if len(rows) != len(card["class_names"]) or not all(0 <= count <= LARGEST_CACHE for count in rows):
        return "head.rows does not say how many images of each class it holds"
    sound = is_number(sharpness) and 0 < sharpness <= LARGEST
    return None if sound else f"head.sharpness is no number above 0 and up to {LARGEST}"


def _calibration_problem(calibration: Mapping[str, Any] | None) -> str | None:
    temperatures = {key: value for key, value in (calibration or {}).items() if key != "images"}
    sound = all(is_number(value) and 1 / LARGEST <= value <= LARGEST for value in temperatures.values())
    return None if sound else f"calibration has a temperature that is no number from 1/{LARGEST} to {LARGEST}"


def _adapter_problem(adapter: object) -> str | None:
    from mmrl_core.config import AdapterConfig, BaselineConfig, parse  # pydantic, which `unverified` spares

    is_baseline = isinstance(adapter, dict) and adapter.get("method") in BASELINES
    try:
        parse(BaselineConfig if is_baseline else AdapterConfig, cast(dict[str, Any], adapter), "adapter")
    except UserError as error:
        return str(error)
    return None


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number that a float can be; JSON as Python reads it has NaN, infinities and integers
    without end too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_verified_card(folder: str | Path) -> AdapterCard:
    """The card of an adapter whose files are what was saved, by their digests; without PyTorch. Raises Damaged."""
    card, tensors, folded = read_card(folder), Path(folder) / TENSORS, Path(folder) / FOLDED
    if not tensors.is_file() or sha256_file(tensors) != card["sha256"]:
        raise Damaged(f"{tensors} does not match the sha256 in its {CARD}; it was altered, train it again")
    if "folded_sha256" in card and folded.is_file() and sha256_file(folded) != card["folded_sha256"]:
        raise Damaged(f"{folded} does not match the sha256 in its {CARD}; it was altered, train it again")
    return card
