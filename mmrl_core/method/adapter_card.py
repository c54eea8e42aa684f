"""adapter.json, the card beside an adapter's tensors: its keys and how it is read. Imports no PyTorch."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from mmrl_core.errors import Damaged
from mmrl_core.files import canonical_json, read_json, sha256_file

CARD, TENSORS = "adapter.json", "adapter.safetensors"


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
    images: int


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


class AdapterCard(CardContent):
    """The whole document."""

    schema_version: NotRequired[int]  # in the file alone
    kind: str  # "adapter"
    sha256: str  # of adapter.safetensors
    trainable: int  # parameters
    adapter: dict[str, Any]  # the fields of AdapterConfig
    backbone: BackboneCard
    card_sha256: str


def card_sha256(card: Mapping[str, object]) -> str:
    """Digest of all that the card says, itself and the file format apart."""
    content = {key: value for key, value in card.items() if key not in ("schema_version", "card_sha256")}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def read_unverified_card(folder: str | Path, *, made_by: str, keys: Iterable[str] = ()) -> AdapterCard:
    """The adapter.json of a folder, its digest unchecked; `made_by`, `keys` and what it raises are `read_json`'s."""
    return cast(AdapterCard, read_json(Path(folder) / CARD, made_by=made_by, keys=keys))


def read_card(folder: str | Path) -> AdapterCard:
    """The adapter.json of a folder. Raises Damaged when altered or of another kind, UserError when missing."""
    path, card = Path(folder) / CARD, read_unverified_card(folder, made_by="mmrl train")
    if card.get("kind") != "adapter":
        raise Damaged(f"{path} does not describe an adapter; point at a folder that `mmrl train` wrote")
    if card.get("card_sha256") != card_sha256(card):
        raise Damaged(f"{path} does not match its own card_sha256; it was altered, train it again")
    return card


def read_verified_card(folder: str | Path) -> AdapterCard:
    """The card of an adapter whose two files are what was saved, by their digests; without PyTorch. Raises Damaged."""
    card, tensors = read_card(folder), Path(folder) / TENSORS
    if not tensors.is_file() or sha256_file(tensors) != card["sha256"]:
        raise Damaged(f"{tensors} does not match the sha256 in its {CARD}; it was altered, train it again")
    return card
