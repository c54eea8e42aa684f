"""What makes two searches the same: then the second goes on where the first ended, or has nothing left to do."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from flows.project import paths
from flows.settings.dotted import flatten
from flows.settings.params import Params
from flows.settings.resolve import unflipped
from flows.settings.sections import BackboneSection
from mmrl_core import EVALUATION_VERSION, METHOD_VERSION
from mmrl_core.clip.weights.weight_files import folders_digest
from mmrl_core.data.shards import read_manifest
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json, read_json, sha256_file, write_json
from mmrl_core.protocols import PROTOCOLS
from mmrl_core.search.trial import Space

FREE = {"enabled", "trials", "concurrent"}  # of the section `search`: more trials are the same search
SEARCH_VERSION = 3  # of the order of partitions, the race, the searchers and what they are told, the choice
FACTS, TUNE = "search.json", "mmrl tune"
TRIALS = "trials"  # the ledger's folder in a search's


class Facts(TypedDict):
    """What is read of a search's facts, beside comparing them."""

    search: dict[str, Any]


@dataclass(frozen=True)
class Search:
    """What is searched, and the folder that keeps it."""

    params: Params
    dataset: str
    method: str
    space: Space
    facts: dict[str, Any]  # as `facts` tells them
    folder: Path

    @property
    def label(self) -> str:
        return f"search {self.dataset} {self.method}"

    @property
    def trials(self) -> Path:
        """The ledger's folder."""
        return self.folder / TRIALS


def facts(params: Params, dataset: str, method: str) -> dict[str, Any]:
    """All that a trial's scores and the order of trials depend on; told without PyTorch, from digests."""
    folders = [paths.few_shot(dataset, max(params.shots), seed) for seed in params.seeds]
    folders += [paths.pool(dataset)] if params.search.validation == "full" else []
    values = {
        "dataset": dataset,
        "method": method,
        "shots": max(params.shots),
        "seeds": params.seeds,
        "search": params.search.model_dump(exclude=FREE),
        "in_order": params.search.concurrent == 1,  # side by side, timing settles which trials there are
        "on_gpu": params.cluster.gpus_per_trial > 0
        and params.device != "cpu",  # which settles what train.precision auto means
        "adapter": params.adapter.model_dump(exclude={"probe"}),  # fitted once an adapter is trained; trials do without
        "train": params.train.model_dump(),
        "unflipped": unflipped(params, dataset),
        "preset": params.preset,
        "training": PROTOCOLS[params.data.protocol].training,
        "backbone": params.backbone.model_dump(),
        "weights_sha256": _weights_digest(params.backbone),
        "data": [read_manifest(folder)["digest"] for folder in folders],
        "method_version": METHOD_VERSION,
        "evaluation_version": EVALUATION_VERSION,
        "search_version": SEARCH_VERSION,
    }
    return json.loads(canonical_json(values))  # as it is read back


def _weights_digest(section: BackboneSection) -> str | None:
    """Of a file or a folder; None for the bundled backbone as well, whose name says which it is."""
    if section.weights is None:
        return folders_digest(section.name)
    return sha256_file(section.weights) if Path(section.weights).is_file() else None


def open_folder(facts: dict[str, Any]) -> tuple[Path, list[str]]:
    """The folder of the search that these facts identify, made the latest of its dataset and method.

    And the dotted keys in which a new search differs from the one that was the latest; none where it is the first or is
    resumed.
    """
    family = paths.searches(facts["dataset"], facts["method"])
    name = hashlib.sha256(canonical_json(facts)).hexdigest()[:16]
    folder, latest = family / name, _latest(family)
    differs = _differences(latest, facts) if latest and not (folder / FACTS).exists() else []
    write_json(folder / FACTS, facts)  # the one written last is the latest
    return folder, differs


def earlier(facts: dict[str, Any]) -> list[Path]:
    """Folders of other searches on the dataset, of either method, the latest first."""
    others = [path for path in paths.searches(facts["dataset"]).glob(f"*/*/{FACTS}") if _read(path) != facts]
    return [path.parent for path in sorted(others, key=lambda path: -path.stat().st_mtime)]


def _latest(family: Path) -> dict[str, Any] | None:
    cards = sorted(family.glob(f"*/{FACTS}"), key=lambda path: path.stat().st_mtime)
    return _read(cards[-1]) if cards else None


def _read(path: Path) -> dict[str, Any]:
    try:
        card = read_json(path, made_by=TUNE, shape=Facts)
    except UserError:  # a damaged file tells of no search
        return {}
    card.pop("schema_version")
    return card


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ, `search.space` as one."""
    old, new = (flatten(_with_space_as_text(card)) for card in (before, now))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _with_space_as_text(card: dict[str, Any]) -> dict[str, Any]:
    search = card.get("search", {})
    return {**card, "search": {**search, "space": canonical_json(search.get("space", {})).decode()}}
