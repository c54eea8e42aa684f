"""The stages `fingerprint` and `prepare`: a dataset's digest, its pool of test images, its few-shot sets."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.project.paths import KNOWN
from flows.project.progress import progress
from flows.settings.params import Params
from mmrl_core.files import write_json
from mmrl_core.protocols import ON_TARGET, PROTOCOLS

if TYPE_CHECKING:
    from mmrl_core.data.shards import Manifest
    from mmrl_core.data.source import Source


def fingerprint(params: Params, dataset: str, out: Path) -> dict[str, Any]:
    """Digest of the raw source: what `prepare` depends on."""
    from mmrl_core.data.catalog import fingerprint as read_fingerprint

    facts = read_fingerprint(dataset, params.data.root, params.data.own)
    write_json(out, facts)
    return facts


def fingerprint_training(params: Params, out: Path) -> dict[str, Any]:
    """The part of the protocol that search and training depend on: protocols that agree in it share their adapters. And
    which of the user's own images are not to be mirrored."""
    unflipped = sorted(name for name, own in params.data.own.items() if not own.flips)
    facts = {**PROTOCOLS[params.data.protocol].training, **({"unflipped": unflipped} if unflipped else {})}
    write_json(out, facts)
    return facts


def prepare_pool(params: Params, dataset: str, out: Path) -> dict[str, Any]:
    """Val and test shards of a dataset."""
    from mmrl_core.data.catalog import photograph_note
    from mmrl_core.data.shards import write_pool

    out.mkdir()
    with progress(f"prepare {dataset}", unit="images") as report:
        source, n_base = _source(params, dataset)
        manifest = write_pool(source, out, report, n_base=n_base)
    return {**_facts(manifest), **_notes(manifest, params, photograph_note(dataset, params.backbone.name))}


def _source(params: Params, dataset: str) -> tuple["Source", int | None]:
    """The dataset and its number of base classes. Raises UserError where some class cannot be trained on or tested."""
    from mmrl_core.data.catalog import open_source
    from mmrl_core.data.lacking import refuse_lacking

    is_target = dataset in params.targets
    with progress(f"read {dataset}", unit="images") if dataset in params.data.own else nullcontext() as report:
        source = open_source(dataset, params.data.root, params.data.own, known=KNOWN, report=report)
    n_base = None if is_target else params.data.base_classes  # a target is not divided
    refuse_lacking(source, n_base, ON_TARGET if is_target else PROTOCOLS[params.data.protocol])
    return source, n_base


def _facts(manifest: "Manifest") -> dict[str, Any]:
    from mmrl_core.data.own.records import some

    names = manifest["class_names"]
    return {"digest": manifest["digest"], **manifest["counts"], "classes": f"{len(names)} ({some(names)})"}


def _notes(manifest: "Manifest", params: Params, other: str | None = None) -> dict[str, list[str]]:
    """What the manifest notes of the data, what the settings' backbone would make of the class names, and another."""
    from mmrl_core.clip.prompts import cut_notes

    cut = cut_notes(manifest["class_names"], manifest["templates"], params.backbone.name)
    notes = [*manifest["notes"], *cut, *filter(None, [other])]
    return {"notes": notes} if notes else {}


def prepare_few_shot(params: Params, dataset: str, shots: int, seed: int, out: Path) -> dict[str, Any]:
    """Few-shot train and val shards of one sampling seed."""
    from mmrl_core.data.shards import write_few_shot

    out.mkdir()
    source, n_base = _source(params, dataset)
    with progress(f"prepare {dataset} {shots}-shot seed {seed}", unit="images") as report:
        manifest = write_few_shot(source, shots, seed, out, report, n_base=n_base)
    short = {"classes_with_fewer_items": manifest["short_classes"]} if manifest["short_classes"] else {}
    return {**_facts(manifest), **short, **_notes(manifest, params)}
