"""Rebuild a registered adapter from what its version recorded, and say whether it is the same."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from flows.project import paths
from flows.project.paths import RunKey
from flows.project.progress import progress
from flows.registry.versions import fetch
from flows.settings.params import Params
from flows.settings.resolve import settings_from_keys
from flows.tracking.store import store_uri
from mmrl_core import METHOD_VERSION
from mmrl_core.config import BaselineConfig, parse
from mmrl_core.data.shards import read_manifest
from mmrl_core.errors import UserError
from mmrl_core.method.adapter_card import AdapterCard, CardContent, read_card
from mmrl_core.protocols import BASELINES

if TYPE_CHECKING:
    from mmrl_core.clip.backbone import Backbone
    from mmrl_core.method.adapter import Adapter
    from mmrl_core.method.baseline import Baseline

CHOSEN = ("head", "calibration", "abstain")  # keys of the card, by few-shot validation


def reproduce(params: Params, model: str, out: Path) -> dict[str, Any]:
    """Train `models:/NAME@ALIAS` or `models:/NAME/3` again, into `out`: its data, settings and seed are the version's.

    The data is what is prepared here, or else is prepared anew from the raw source; its digest has to be the recorded
    one. Returns whether tensors and all that validation chose are the same, and the largest difference between two
    values. Raises UserError where another release, backbone or data would give another adapter.
    """
    from mmrl_core.method.adapter import backbone_of, load_adapter, save_adapter

    with TemporaryDirectory() as folder:
        fetched = fetch(model, store_uri(params), folder)
        card = read_card(fetched.adapter)
        _check_release(card, fetched.tags, model)
        backbone = backbone_of(card)
        original, _ = load_adapter(fetched.adapter, backbone)  # refuses another backbone
        adapter, made = _make(params, card, backbone, Path(folder))
    kept = {name: card[name] for name in ("method_version", "class_names", "template", "data", "training", "settings",
                                          "sources") if name in card}  # fmt: skip
    document = save_adapter(out, adapter, backbone, cast(CardContent, {**kept, **made}))
    old, new = original.state_dict(), adapter.state_dict()
    both = [name for name in old if name in new]  # one alone may hold a probe, on another kind of CPU
    furthest = max(float((old[name] - new[name]).abs().max()) for name in both)
    identical = all(document.get(name) == card.get(name) for name in ("sha256", *CHOSEN))
    return {"identical": identical, "furthest": furthest, "adapter_sha256": card["sha256"]}


def _check_release(card: AdapterCard, tags: dict[str, str], model: str) -> None:
    commit = f" (git commit {tags['git_commit']})" if "git_commit" in tags else ""
    if "training" not in card:
        raise UserError(f"{model} was imported, not trained here; there is nothing to repeat")
    if card["method_version"] != METHOD_VERSION:
        raise UserError(
            f"{model} was trained by method_version {card['method_version']}, this release has {METHOD_VERSION}; "
            f"check out the release that trained it{commit}"
        )


def _make(
    params: Params, card: AdapterCard, backbone: "Backbone", folder: Path
) -> tuple["Adapter | Baseline", dict[str, Any]]:
    """The adapter, trained or fitted again, and what its card says of that."""
    from mmrl_core.baselines.finish import finish
    from mmrl_core.baselines.fit import fit_baseline
    from mmrl_core.data.sets import read_set
    from mmrl_core.training.fit import fit
    from mmrl_core.training.process import settle_process

    settle_process(backbone)
    few_shot, halves = _few_shot(params, card, folder), card["training"]["trains_on"]
    data, val = (read_set(few_shot, split, halves, card["template"]) for split in ("train", "val"))
    if card["adapter"]["method"] in BASELINES:
        config = parse(BaselineConfig, card["adapter"], "the card")
        baseline, abstain = fit_baseline(backbone, config, data, val, card["data"]["seed"])
        return baseline, {"abstain": abstain}
    settings, train = settings_from_keys(card["settings"])
    with progress(f"train {card['data']['dataset']} again", train.epochs, what="epoch") as bar:
        fitted = fit(backbone, settings, train, data, val=val, report=lambda epoch, metrics: bar(epoch + 1))
    abstain = finish(backbone, fitted.adapter, data, val)
    return fitted.adapter, {"history": fitted.history, "abstain": abstain}


def _few_shot(params: Params, card: AdapterCard, folder: Path) -> Path:
    """The few-shot set of the recorded digest: the one that is prepared here, else one that is prepared now."""
    from flows.stages.prepare import prepare_few_shot

    data, digest = card["data"], card["data"]["digest"]
    key = RunKey(data["dataset"], data["method"], data["shots"], data["seed"])
    here = paths.few_shot(key.dataset, key.shots, key.seed)
    if (here / "manifest.json").exists() and read_manifest(here)["digest"] == digest:
        return here
    prepare_few_shot(params, key.dataset, key.shots, key.seed, folder / "few_shot")
    if read_manifest(folder / "few_shot")["digest"] != digest:
        raise UserError(
            f"the images of {key.dataset} are not those that the adapter was trained on; check out the commit of its "
            "dvc.lock and run `dvc pull`, or restore the raw source"
        )
    return folder / "few_shot"
