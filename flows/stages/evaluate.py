"""The stage `evaluate`: metrics.json and predictions.parquet of a run, or of several in one pass over the images."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flows.cluster.scoring import AdapterToScore, ScoringTask, score_here, score_on_cluster
from flows.project import paths
from flows.project.paths import RunKey
from flows.project.predictions import write_predictions
from flows.project.progress import progress
from flows.project.resources import backbone_for, open_store
from flows.settings.params import Params
from flows.settings.resolve import target_beta
from flows.settings.sections import BackboneSection, ClusterSection
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.data.shards import Manifest, read_manifest, shards_of
from mmrl_core.errors import UserError
from mmrl_core.evaluation.bootstrap import Outcomes, paired_gains
from mmrl_core.evaluation.class_metrics import class_metrics
from mmrl_core.evaluation.gate import is_gate_image
from mmrl_core.evaluation.scores import (
    NEITHER,
    UNCALIBRATED,
    VARIANTS,
    WITHOUT_PROBE,
    Columns,
    Scores,
    expected_calibration_error,
    merged,
    summary,
)
from mmrl_core.files import write_json
from mmrl_core.method.adapter import Adapter, load_adapter
from mmrl_core.method.adapter_card import AdapterCard, CardOfTensors, read_unverified_card
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.heads import columns_of
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.protocols import ALL, PROTOCOLS, Half, Protocol, TestSet, harmonic_mean, labels_of

SCORES = 1e9  # bytes of all runs' scores, which are in memory together


class RunToEvaluate(NamedTuple):
    """A run with the folder of its adapter, and the one that metrics.json and predictions.parquet are written to."""

    key: RunKey
    model: Path
    out: Path


class LoadedRun(NamedTuple):
    """A run whose adapter is loaded, with the adapter's card and the prompt template."""

    key: RunKey
    out: Path
    adapter: Adapter | Baseline
    card: AdapterCard
    template: str


class Shared(NamedTuple):
    """What all runs of one evaluation share: the prepared dataset that they are scored on, and what they run with."""

    backbone: Backbone
    pool: Path
    manifest: Manifest
    trained: tuple[Half, ...]  # halves whose classes were trained on
    store: FeatureStore | None
    section: BackboneSection
    cluster: ClusterSection


def evaluate(params: Params, key: RunKey, out: Path, target: str | None = None) -> dict[str, Any]:
    """Score an adapter and zero-shot on the protocol's test sets, or on `target`; metrics.json, predictions.parquet."""
    out.mkdir()
    return evaluate_each(params, [RunToEvaluate(key, key.model, out)], target)[key]


def runs_at_once(key: RunKey, target: str | None = None) -> int:
    """How many runs may be evaluated together on a run's dataset or a target: as many as SCORES has memory for, and
    one in any case."""
    manifest = read_manifest(paths.pool(target or key.dataset))
    scores = max(1, manifest["counts"]["test"]) * len(manifest["class_names"])
    return max(1, int(SCORES / (scores * (2 + len(VARIANTS)) * 4)))  # of the adapter and zero-shot too, float32


def evaluate_each(
    params: Params, runs: Sequence[RunToEvaluate], target: str | None = None
) -> dict[RunKey, dict[str, Any]]:
    """What `evaluate` makes and returns, for each of several runs of one dataset, in one pass over its images.

    The runs' folders `out` exist and are empty. Raises as `metrics_of_each`.
    """
    if target is not None and target not in params.targets:
        raise UserError(f"--target {target} is not among the settings' targets {params.targets}; add it there")
    backbone, start = backbone_for(params), time.monotonic()
    metrics = metrics_of_each(backbone, runs, params, target)
    seconds = (time.monotonic() - start) / len(metrics)
    return {key: _figures(of_run, seconds) for key, of_run in metrics.items()}


def metrics_of_each(
    backbone: Backbone, runs: Sequence[RunToEvaluate], params: Params, target: str | None = None
) -> dict[RunKey, dict[str, Any]]:
    """Score each run's adapter and zero-shot on its own dataset's pool or a target's, write its files, and return what
    its metrics.json says. A run's files are the same whichever others are evaluated with it.

    Raises UserError where the first run cannot be evaluated; any other such run is left out.
    """
    protocol = PROTOCOLS[params.data.protocol]
    shared = _shared(backbone, params, runs[0].key, target)
    loaded: list[LoadedRun] = []
    for wanted in runs:
        with contextlib.suppress(UserError) if loaded else contextlib.nullcontext():
            loaded.append(_load(shared, wanted, params, target))
    tests = protocol.tests if target is None else (ALL,)
    scores = {test.part: _score(shared, loaded, "test", test) for test in tests}
    validation = _validation(shared, loaded, protocol) if target is None else [{} for _ in loaded]
    metrics = {}
    for index, run in enumerate(loaded):
        of_run = {part: each[index] for part, each in scores.items()}
        metrics[run.key] = _write(shared, run, params, target, of_run, validation[index])
    return metrics


def _write(
    shared: Shared, run: LoadedRun, params: Params, target: str | None, scores: dict[str, Scores],
    validation: dict[str, dict[str, float]],
) -> dict[str, Any]:  # fmt: skip
    key, without = run.key, _parts_of(scores, WITHOUT_PROBE, NEITHER)
    metrics = {
        **key._asdict(),
        "target": target or key.dataset,
        "protocol": params.data.protocol,
        "preset": params.preset,
        "beta": run.adapter.config.composition,
        "template": run.template,
        "parts": list(scores),
        **_calibrated(_parts({part: (one.adapted, one.labels) for part, one in scores.items()}), scores, UNCALIBRATED),
        "zero_shot": _parts({part: (one.zero_shot, one.labels) for part, one in scores.items()}),
        **({WITHOUT_PROBE: without} if without else {}),
        "gain": paired_gains([{part: outcomes(one) for part, one in scores.items()}]),
        "validation": validation,
        "class_names": dict(enumerate(shared.manifest["class_names"])),
        "adapter_sha256": run.card["sha256"],
        "backbone_sha256": shared.backbone.weights_sha256,
        "data_digest": shared.manifest["digest"],
    }
    write_predictions(run.out / "predictions.parquet", scores)
    write_json(run.out / "metrics.json", metrics)
    return metrics


def _shared(backbone: Backbone, params: Params, key: RunKey, target: str | None) -> Shared:
    pool, store = paths.pool(target or key.dataset), open_store(params, "evaluate")
    trained = PROTOCOLS[params.data.protocol].trains_on if target is None else ()
    return Shared(backbone, pool, read_manifest(pool), trained, store, params.backbone, params.cluster)


def _load(shared: Shared, run: RunToEvaluate, params: Params, target: str | None) -> LoadedRun:
    """On a target the adapter is used with the target's (first) template, and with the beta of the preset for it."""
    manifest, key = shared.manifest, run.key
    read_unverified_card(run.model, made_by=key.command("train"))  # which says what to run where there is none
    adapter, card = load_adapter(run.model, shared.backbone)
    if card["training"] != PROTOCOLS[params.data.protocol].training:
        raise UserError(f"{key.model} was trained for another protocol than {params.data.protocol}; run `dvc repro`")
    if target is None:
        _check_classes(card, [manifest["class_names"][label] for label in labels_of(manifest, shared.trained)], key)
        return LoadedRun(key, run.out, adapter, card, card["template"])
    beta = target_beta(params, key.method, target)
    if beta is not None:
        assert isinstance(adapter, Adapter)  # a baseline has no beta
        adapter.config = adapter.config.model_copy(update={"beta": beta})
    return LoadedRun(key, run.out, adapter, card, manifest["templates"][0])


def _check_classes(card: AdapterCard, names: list[str], key: RunKey) -> None:
    if card["class_names"] != names:
        raise UserError(
            f"{key.model} was trained on classes {card['class_names'][:3]}... but {paths.pool(key.dataset)} has "
            f"{names[:3]}...; run `{key.command('train')}` again"
        )


def _score(shared: Shared, runs: list[LoadedRun], split: str, test: TestSet) -> list[Scores]:
    """Each run's scores on the images of one test set, among its classes.

    On a target the methods' runs have no trained class; a baseline's are those of the same names, as under domain
    shift.
    """
    ours, by_name = labels_of(shared.manifest, shared.trained), [run for run in runs if _knows_names(shared, run)]
    scores = _score_together(shared, [run for run in runs if run not in by_name], split, test, ours)
    for run in by_name:
        scores |= _score_together(shared, [run], split, test, _named(shared.manifest, run.card["class_names"]))
    return [scores[run.key] for run in runs]


def _knows_names(shared: Shared, run: LoadedRun) -> bool:
    return not shared.trained and isinstance(run.adapter, Baseline)


def _named(manifest: Manifest, class_names: list[str]) -> dict[int, int]:
    """The places of the dataset's labels among these classes, by name."""
    columns = columns_of(manifest["class_names"], class_names).tolist()
    return {label: column for label, column in enumerate(columns) if column >= 0}


def _score_together(
    shared: Shared, runs: list[LoadedRun], split: str, test: TestSet, trained: Columns
) -> dict[RunKey, Scores]:
    """The same by run, of runs whose classes are the same."""
    if not runs:
        return {}
    manifest, pool = shared.manifest, shared.pool
    labels = labels_of(manifest, test.classes)
    names = [manifest["class_names"][label] for label in labels]
    models = [AdaptedCLIP(shared.backbone, run.adapter, names, run.template) for run in runs]
    shards = [shard for half in test.images for shard in shards_of(pool, split, half)]
    n = sum(shard.count for shard in shards)
    if split == "test" and not n:
        raise UserError(f"{pool} has no test image of the {test.part} classes; give the dataset's test list some")
    with progress(f"evaluate {manifest['dataset']} {test.part} {split}", n, unit="images") as bar:
        if shared.cluster.is_distributed:
            task = ScoringTask(shared.section, names, labels, trained, list(map(_to_score, runs, models)))
            parts = score_on_cluster(shared.cluster, task, shards, bar)
        else:
            parts = list(score_here(models, shards, labels, trained, bar, shared.store))
    return {run.key: merged((part[index] for part in parts), labels) for index, run in enumerate(runs)}


def _to_score(run: LoadedRun, model: AdaptedCLIP) -> AdapterToScore:
    with torch.no_grad():
        text = (model.text_features().cpu(), model.zero_shot_text.cpu())
    tensors = {name: tensor.cpu() for name, tensor in model.adapter.state_dict().items()}
    card: CardOfTensors = {
        "adapter": run.adapter.config.model_dump(),
        "class_names": run.card["class_names"],
        "head": run.adapter.head_card,
        "calibration": run.adapter.calibration,
    }
    return AdapterToScore(card, tensors, model.template, text)


def _validation(shared: Shared, runs: list[LoadedRun], protocol: Protocol) -> list[dict[str, dict[str, float]]]:
    """Each run's figures on the trained classes' validation images, among these classes, without the gate's images."""
    part = protocol.trained_part
    scores = _score(shared, runs, "val", TestSet(part, protocol.trains_on, protocol.trains_on))
    kept = [of_run.where(lambda item: not is_gate_image(item)) for of_run in scores]
    return [{part: summary(of_run.adapted, of_run.labels)} if of_run.items else {} for of_run in kept]


def _parts_of(scores: dict[str, Scores], variant: str, before: str) -> dict[str, Any]:
    """`_parts` of a variant, and of what it is without its temperatures; nothing where there is none."""
    if not all(variant in one.variants for one in scores.values()):
        return {}
    parts = _parts({part: (one.variants[variant], one.labels) for part, one in scores.items()})
    return _calibrated(parts, scores, before)


def _calibrated(parts: dict[str, Any], scores: dict[str, Scores], before: str) -> dict[str, Any]:
    """Every part's figures with its calibration error before a temperature was applied, where one was."""
    return parts | {
        part: {**parts[part], "ece_uncalibrated": expected_calibration_error(one.variants[before], one.labels)}
        for part, one in scores.items() if before in one.variants
    }  # fmt: skip


def _parts(parts: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Every part's summary and metrics by class, the number of images, and the harmonic mean where there are base and
    novel. A part is its probabilities (N, C) and labels (N,)."""
    summaries = {
        name: {**summary(probabilities, labels), **class_metrics(probabilities.float().numpy(), labels.numpy())}
        for name, (probabilities, labels) in parts.items()
    }
    accuracies = {name: part["accuracy"] for name, part in summaries.items()}
    both = {"base", "novel"} <= accuracies.keys()
    mean = {"harmonic_mean": harmonic_mean(accuracies["base"], accuracies["novel"])} if both else {}
    return {**summaries, **mean, "n": sum(part["n"] for part in summaries.values())}


def outcomes(scores: Scores) -> Outcomes:
    """Whether each image was classified rightly by the adapter, and by zero-shot."""
    truth = scores.labels
    right = (probabilities.argmax(-1) == truth for probabilities in (scores.adapted, scores.zero_shot))
    return Outcomes(scores.items, *(one.numpy() for one in right))


def _figures(metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the command prints of a run."""
    accuracies = {part: metrics[part]["accuracy"] for part in metrics["parts"]}
    zero_shot = {f"zero_shot_{part}": metrics["zero_shot"][part]["accuracy"] for part in metrics["parts"]}
    mean = {"harmonic_mean": metrics["harmonic_mean"]} if "harmonic_mean" in metrics else {}
    return {**accuracies, **mean, **zero_shot, "images_per_second": metrics["n"] / seconds}
