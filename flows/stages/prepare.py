"""The stages `fingerprint` and `prepare`: a dataset's digest, its pool of test images, its few-shot sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.project.progress import progress
from flows.settings.params import Params
from mmrl_core.files import write_json
from mmrl_core.protocols import PROTOCOLS

if TYPE_CHECKING:
    from mmrl_core.data.shards import Manifest


def fingerprint(params: Params, dataset: str, out: Path) -> dict[str, Any]:
    """Digest of the raw source: what `prepare` depends on."""
    from mmrl_core.data.catalog import fingerprint as read_fingerprint

    facts = read_fingerprint(dataset, params.data.root, params.data.own)
    write_json(out, facts)
    return facts


def fingerprint_training(params: Params, out: Path) -> dict[str, Any]:
    """The part of the protocol that search and training depend on: protocols that agree in it share their adapters."""
    facts = PROTOCOLS[params.data.protocol].training
    write_json(out, facts)
    return facts


def prepare_pool(params: Params, dataset: str, out: Path) -> dict[str, Any]:
    """Val and test shards of a dataset."""
    from mmrl_core.data.catalog import open_source
    from mmrl_core.data.shards import write_pool

    out.mkdir()
    with progress(f"prepare {dataset}", unit="images") as report:
        source = open_source(dataset, params.data.root, params.data.own)
        n_base = None if dataset in params.targets else params.data.base_classes  # a target is not divided
        manifest = write_pool(source, out, report, n_base=n_base)
    return {"digest": manifest["digest"], **manifest["counts"], **_notes(manifest, params)}


def _notes(manifest: "Manifest", params: Params) -> dict[str, list[str]]:
    """What the manifest notes of the data, and what the settings' backbone would make of the class names."""
    from mmrl_core.clip.prompts import cut_notes

    notes = [*manifest["notes"], *cut_notes(manifest["class_names"], manifest["templates"], params.backbone.name)]
    return {"notes": notes} if notes else {}


def prepare_few_shot(params: Params, dataset: str, shots: int, seed: int, out: Path) -> dict[str, Any]:
    """Few-shot train and val shards of one sampling seed."""
    from mmrl_core.data.catalog import open_source
    from mmrl_core.data.shards import write_few_shot

    out.mkdir()
    source, n_base = open_source(dataset, params.data.root, params.data.own), params.data.base_classes
    with progress(f"prepare {dataset} {shots}-shot seed {seed}", unit="images") as report:
        manifest = write_few_shot(source, shots, seed, out, report, n_base=n_base)
    short = {"classes_with_fewer_items": manifest["short_classes"]} if manifest["short_classes"] else {}
    return {"digest": manifest["digest"], **manifest["counts"], **short, **_notes(manifest, params)}
