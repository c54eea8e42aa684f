"""Evaluations as files: metrics.json and predictions.parquet of a run, or of several in one pass over the images."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flows.cluster.scoring import AdapterToScore, ScoringTask, score_here, score_on_cluster
from flows.project import paths
from flows.project.paths import RunKey
from flows.project.predictions import write_predictions
from flows.project.progress import progress
from flows.project.resources import backbone_of, open_store
from flows.settings.params import Params
from flows.settings.resolve import target_beta
from flows.settings.sections import BackboneSection, ClusterSection
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.data.shards import Manifest, read_manifest, shards_of
from mmrl_core.errors import UserError
from mmrl_core.evaluation.bootstrap import Outcomes, paired_gains
from mmrl_core.evaluation.gate import is_gate_image
from mmrl_core.evaluation.scores import Scores, merged, summary
from mmrl_core.files import write_json
from mmrl_core.method.adapter import Adapter, load_adapter
from mmrl_core.method.adapter_card import AdapterCard
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.protocols import ALL, PROTOCOLS, Half, Protocol, TestSet, harmonic_mean, labels_of


class Wanted(NamedTuple):
    """A run to evaluate: where its adapter lies, and the folder that metrics.json and predictions.parquet go to."""

    key: RunKey
    model: Path
    out: Path


class Subject(NamedTuple):
    """Its adapter with its card and prompts."""

    wanted: Wanted
    adapter: Adapter
    card: AdapterCard
    template: str


class Setting(NamedTuple):
    """What all subjects share: on which prepared dataset they are scored, and with what."""

    backbone: Backbone
    pool: Path
    manifest: Manifest
    trained: tuple[Half, ...]  # halves whose classes were trained on
    store: FeatureStore | None
    section: BackboneSection
    cluster: ClusterSection


def evaluate_run(backbone: Backbone, key: RunKey, params: Params, out: Path, target: str | None = None) -> dict:
    """Score the run's adapter and zero-shot on its own dataset's pool or a target's; returns what metrics.json says."""
    return evaluate_runs(backbone, [Wanted(key, key.model, out)], params, target)[key]


def evaluate_runs(
    backbone: Backbone, runs: Sequence[Wanted], params: Params, target: str | None = None
) -> dict[RunKey, dict]:
    """The same for several runs of one dataset in one pass over the images; each one's files are those it gets alone.

    Raises UserError where the first run cannot be evaluated; any other such run is left out.
    """
    protocol = PROTOCOLS[params.data.protocol]
    setting, subjects = _setting(backbone, params, runs[0].key, target), []
    for run in runs:
        with contextlib.suppress(UserError) if subjects else contextlib.nullcontext():
            subjects.append(_subject(setting, run, params, target))
    tests = protocol.tests if target is None else (ALL,)
    scores = {test.part: _score(setting, subjects, "test", test) for test in tests}
    validation = _validation(setting, subjects, protocol) if target is None else [{} for _ in subjects]
    found = {}
    for index, subject in enumerate(subjects):
        mine = {part: each[index] for part, each in scores.items()}
        found[subject.wanted.key] = _write(setting, subject, params, target, mine, validation[index])
    return found


def _write(
    setting: Setting, subject: Subject, params: Params, target: str | None, scores: dict[str, Scores],
    validation: dict[str, dict],
) -> dict:  # fmt: skip
    key, out = subject.wanted.key, subject.wanted.out
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
        "validation": validation,
        "class_names": dict(enumerate(setting.manifest["class_names"])),
        "adapter_sha256": subject.card["sha256"],
        "backbone_sha256": setting.backbone.weights_sha256,
        "data_digest": setting.manifest["digest"],
    }
    write_predictions(out / "predictions.parquet", scores)
    write_json(out / "metrics.json", metrics)
    return metrics


def _setting(backbone: Backbone, params: Params, key: RunKey, target: str | None) -> Setting:
    pool, store = paths.pool(target or key.dataset), open_store(params, "evaluate")
    trained = PROTOCOLS[params.data.protocol].trains_on if target is None else ()
    return Setting(backbone, pool, read_manifest(pool), trained, store, params.backbone, params.cluster)


def _subject(setting: Setting, wanted: Wanted, params: Params, target: str | None) -> Subject:
    """A target is met with its own (first) template, and beta as the preset says for it."""
    manifest, key = setting.manifest, wanted.key
    adapter, card = load_adapter(wanted.model, setting.backbone)
    if card["training"] != PROTOCOLS[params.data.protocol].training:
        raise UserError(f"{key.model} was trained for another protocol than {params.data.protocol}; run `dvc repro`")
    if target is None:
        _check_classes(card, [manifest["class_names"][label] for label in labels_of(manifest, setting.trained)], key)
        return Subject(wanted, adapter, card, card["template"])
    beta = target_beta(params, key.method, target)
    if beta is not None:
        adapter.config = adapter.config.model_copy(update={"beta": beta})
    return Subject(wanted, adapter, card, manifest["templates"][0])


def _check_classes(card: AdapterCard, names: list[str], key: RunKey) -> None:
    if card["class_names"] != names:
        raise UserError(
            f"{key.model} was trained on classes {card['class_names'][:3]}... but {paths.pool(key.dataset)} has "
            f"{names[:3]}...; run `mmrl train` again"
        )


def _score(setting: Setting, subjects: list[Subject], split: str, test: TestSet) -> list[Scores]:
    """Each subject's."""
    manifest, pool = setting.manifest, setting.pool
    labels, fused = labels_of(manifest, test.classes), labels_of(manifest, setting.trained)
    names = [manifest["class_names"][label] for label in labels]
    models = [AdaptedCLIP(setting.backbone, subject.adapter, names, subject.template) for subject in subjects]
    shards = [shard for half in test.images for shard in shards_of(pool, split, half)]
    n = sum(shard.count for shard in shards)
    if split == "test" and not n:
        raise UserError(f"{pool} has no test image of the {test.part} classes; give the dataset's test list some")
    with progress(f"evaluate {manifest['dataset']} {test.part} {split}", n, unit="images") as bar:
        if setting.cluster.is_distributed:
            task = ScoringTask(setting.section, names, labels, fused, [_to_score(model) for model in models])
            parts = score_on_cluster(setting.cluster, task, shards, bar)
        else:
            parts = list(score_here(models, shards, labels, fused, bar, setting.store))
    return [merged((part[index] for part in parts), labels) for index in range(len(models))]


def _to_score(model: AdaptedCLIP) -> AdapterToScore:
    with torch.no_grad():
        text = (model.text_features().cpu(), model.zero_shot_text.cpu())
    tensors = {name: tensor.cpu() for name, tensor in model.adapter.state_dict().items()}
    return AdapterToScore(model.adapter.config, tensors, model.template, text)


def _validation(setting: Setting, subjects: list[Subject], protocol: Protocol) -> list[dict[str, dict]]:
    """The trained classes' validation images but for the gate's, told apart among these classes."""
    part = protocol.trained_part
    scores = _score(setting, subjects, "val", TestSet(part, protocol.trains_on, protocol.trains_on))
    each = [one.where(lambda item: not is_gate_image(item)) for one in scores]
    return [{part: summary(one.adapted, one.labels)} if one.items else {} for one in each]


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


def evaluate(params: Params, key: RunKey, out: Path, target: str | None = None) -> dict[str, Any]:
    """Score an adapter and zero-shot on the protocol's test sets, or on `target`; metrics.json, predictions.parquet."""
    out.mkdir()
    return evaluate_each(params, {key: (key.model, out)}, target)[key]


def evaluate_each(
    params: Params, runs: dict[RunKey, tuple[Path, Path]], target: str | None = None
) -> dict[RunKey, dict[str, Any]]:
    """What `evaluate` makes and returns for each of several runs of one dataset, in one pass over its images.

    `runs` names the folder of each one's adapter and an empty one to fill. Raises UserError where the first cannot be
    evaluated; any other such run is left out.
    """
    from flows.stages.evaluate import Wanted, evaluate_runs

    if target is not None and target not in params.targets:
        raise UserError(f"--target {target} is not among the settings' targets {params.targets}; add it there")
    backbone, start = backbone_of(params.backbone), time.monotonic()
    found = evaluate_runs(backbone, [Wanted(key, *folders) for key, folders in runs.items()], params, target)
    seconds = (time.monotonic() - start) / len(found)
    return {key: _figures(metrics, seconds) for key, metrics in found.items()}


def _figures(metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    figures = {part: metrics[part]["accuracy"] for part in metrics["parts"]}
    zero_shot = {f"zero_shot_{part}": metrics["zero_shot"][part]["accuracy"] for part in metrics["parts"]}
    mean = {"harmonic_mean": metrics["harmonic_mean"]} if "harmonic_mean" in metrics else {}
    return {**figures, **mean, **zero_shot, "images_per_second": metrics["n"] / seconds}
