"""One run's evaluation as files: metrics.json and predictions.parquet."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from flows import paths
from flows.features import open_store
from flows.paths import RunKey
from flows.predictions import write_predictions
from flows.progress import progress
from flows.scoring import Exam, score_here, score_on_cluster
from mmrl_core.adapter import load_adapter
from mmrl_core.backbone import Backbone
from mmrl_core.config import Params
from mmrl_core.data.features import FeatureStore
from mmrl_core.data.shards import read_manifest, shards_of
from mmrl_core.errors import UserError
from mmrl_core.evaluation import Scores, merged, summary
from mmrl_core.files import write_json
from mmrl_core.gate import is_gate_image
from mmrl_core.model import AdaptedCLIP
from mmrl_core.presets import target_beta
from mmrl_core.protocols import ALL, PROTOCOLS, Protocol, TestSet, harmonic_mean, labels_of
from mmrl_core.sections import BackboneSection, ClusterSection
from mmrl_core.uncertainty import Outcomes, paired_gains


class Subject(NamedTuple):
    """What is evaluated, on which prepared dataset, with which prompts."""

    backbone: Backbone
    adapter: Any
    pool: Path
    manifest: dict
    template: str
    trained: tuple[str, ...]  # halves whose classes were trained on
    store: FeatureStore | None
    section: BackboneSection
    cluster: ClusterSection


def evaluate_run(backbone: Backbone, key: RunKey, params: Params, out: Path, target: str | None = None) -> dict:
    """Score the run's adapter and zero-shot on its own dataset's pool or a target's; returns what metrics.json says."""
    protocol = PROTOCOLS[params.data.protocol]
    subject, card = _subject(backbone, key, params, protocol, target)
    scores = {test.part: _score(subject, "test", test) for test in (protocol.tests if target is None else (ALL,))}
    metrics = {
        **key._asdict(),
        "target": target or key.dataset,
        "protocol": params.data.protocol,
        "preset": params.preset,
        "beta": subject.adapter.config.composition,
        "template": subject.template,
        "parts": list(scores),
        **_parts({part: (one.adapted, one.labels) for part, one in scores.items()}),
        "zero_shot": _parts({part: (one.zero_shot, one.labels) for part, one in scores.items()}),
        "gain": paired_gains([{part: _outcomes(one) for part, one in scores.items()}]),
        "validation": _validation(subject, protocol) if target is None else {},
        "class_names": dict(enumerate(subject.manifest["class_names"])),
        "adapter_sha256": card["sha256"],
        "backbone_sha256": backbone.weights_sha256,
        "data_digest": subject.manifest["digest"],
    }
    write_predictions(out / "predictions.parquet", scores)
    write_json(out / "metrics.json", metrics)
    return metrics


def _subject(
    backbone: Backbone, key: RunKey, params: Params, protocol: Protocol, target: str | None
) -> tuple[Subject, dict]:
    """A target is met with its own (first) template, and beta as the preset says for it."""
    adapter, card = load_adapter(key.model, backbone)
    if card["training"] != protocol.training:
        raise UserError(f"{key.model} was trained for another protocol than {params.data.protocol}; run `dvc repro`")
    pool = paths.pool(target or key.dataset)
    manifest, store, sections = read_manifest(pool), open_store(params, "evaluate"), (params.backbone, params.cluster)
    if target is None:
        _check_classes(card, [manifest["class_names"][label] for label in labels_of(manifest, protocol.trains_on)], key)
        return Subject(backbone, adapter, pool, manifest, card["template"], protocol.trains_on, store, *sections), card
    beta = target_beta(params, key.method, target)
    if beta is not None:
        adapter.config = adapter.config.model_copy(update={"beta": beta})
    return Subject(backbone, adapter, pool, manifest, manifest["templates"][0], (), store, *sections), card


def _check_classes(card: dict, names: list[str], key: RunKey) -> None:
    if card["class_names"] != names:
        raise UserError(
            f"{key.model} was trained on classes {card['class_names'][:3]}... but {paths.pool(key.dataset)} has "
            f"{names[:3]}...; run `mmrl train` again"
        )


def _score(subject: Subject, split: str, test: TestSet) -> Scores:
    manifest, pool = subject.manifest, subject.pool
    labels, fused = labels_of(manifest, test.classes), labels_of(manifest, subject.trained)
    names = [manifest["class_names"][label] for label in labels]
    model = AdaptedCLIP(subject.backbone, subject.adapter, names, subject.template)
    shards = [shard for half in test.images for shard in shards_of(pool, split, half)]
    n = sum(shard.count for shard in shards)
    if split == "test" and not n:
        raise UserError(f"{pool} has no test image of the {test.part} classes; give the dataset's test list some")
    with progress(f"evaluate {manifest['dataset']} {test.part} {split}", n, unit="images") as bar:
        if subject.cluster.is_distributed:
            parts = score_on_cluster(subject.cluster, _exam(subject, model, labels, fused), shards, bar)
        else:
            parts = score_here(model, shards, labels, fused, bar, subject.store)
        return merged(parts, labels)


def _exam(subject: Subject, model: AdaptedCLIP, labels: list[int], fused: list[int]) -> Exam:
    with torch.no_grad():
        text = (model.text_features().cpu(), model.zero_shot_text.cpu())
    tensors = {name: tensor.cpu() for name, tensor in subject.adapter.state_dict().items()}
    return Exam(
        subject.section, subject.adapter.config, tensors, model.class_names, subject.template, labels, fused, text
    )


def _validation(subject: Subject, protocol: Protocol) -> dict[str, dict]:
    """The trained classes' validation images but for the gate's, told apart among these classes."""
    found = _score(subject, "val", TestSet(protocol.trained_part, protocol.trains_on, protocol.trains_on))
    found = found.where(lambda item: not is_gate_image(item))
    return {protocol.trained_part: summary(found.adapted, found.labels)} if found.items else {}


def _parts(parts: dict) -> dict[str, Any]:
    """Every part's summary, the number of images, and the harmonic mean where there are base and novel."""
    found = {name: summary(*part) for name, part in parts.items()}
    both = {"base", "novel"} <= found.keys()
    mean = {"harmonic_mean": harmonic_mean(found["base"]["accuracy"], found["novel"]["accuracy"])} if both else {}
    return {**found, **mean, "n": sum(one["n"] for one in found.values())}


def _outcomes(scores: Scores) -> Outcomes:
    truth = scores.labels
    right = (probabilities.argmax(-1) == truth for probabilities in (scores.adapted, scores.zero_shot))
    return Outcomes(scores.items, *(one.numpy() for one in right))
