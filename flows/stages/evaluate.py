"""The stage `evaluate`: metrics.json and predictions.parquet of a run, or of several in one pass over the images."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from flows.project import paths
from flows.project.paths import RunKey
from flows.project.predictions import write_predictions
from flows.project.resources import backbone_for, open_store
from flows.settings.params import Params
from flows.settings.resolve import target_beta
from flows.stages.scoring import LoadedRun, Pace, Shared, figures_on
from mmrl_core.clip.backbone import Backbone
from mmrl_core.data.shards import read_manifest
from mmrl_core.errors import UserError
from mmrl_core.evaluation.answers import calibration_error
from mmrl_core.evaluation.bootstrap import Outcomes, paired_gains
from mmrl_core.evaluation.figures import Figures
from mmrl_core.evaluation.gate import is_gate_image
from mmrl_core.evaluation.scores import ADAPTED, NEITHER, UNCALIBRATED, WITHOUT_PROBE, ZERO_SHOT
from mmrl_core.files import write_json
from mmrl_core.method.adapter import Adapter, load_adapter
from mmrl_core.method.adapter_card import AdapterCard, read_unverified_card
from mmrl_core.protocols import ALL, PROTOCOLS, Protocol, TestSet, harmonic_mean, labels_of

SCORES = 1e9  # bytes of what all runs keep together until their figures are known
OF_IMAGE = 2 * 1024 * 4 + 500  # bytes: two features in float32, as wide as they come, and the answers
OF_CLASS = 2 * 1024 * 4  # adapted and zero-shot


class RunToEvaluate(NamedTuple):
    """A run with the folder of its adapter, and the one that metrics.json and predictions.parquet are written to."""

    key: RunKey
    model: Path
    out: Path


def evaluate(params: Params, key: RunKey, out: Path, target: str | None = None) -> dict[str, Any]:
    """Score an adapter and zero-shot on the protocol's test sets, or on `target`; metrics.json, predictions.parquet."""
    out.mkdir()
    return evaluate_each(params, [RunToEvaluate(key, key.model, out)], target)[key]


def runs_at_once(key: RunKey, target: str | None = None) -> int:
    """How many runs may be evaluated together on a run's dataset or a target: as many as SCORES has memory for, and
    one in any case."""
    manifest = read_manifest(paths.pool(target or key.dataset))
    kept = OF_IMAGE * max(1, manifest["counts"]["test"]) + OF_CLASS * len(manifest["class_names"])
    return max(1, int(SCORES / kept))


def evaluate_each(
    params: Params, runs: Sequence[RunToEvaluate], target: str | None = None
) -> dict[RunKey, dict[str, Any]]:
    """What `evaluate` makes and returns, for each of several runs of one dataset, in one pass over its images.

    The runs' folders `out` exist and are empty. Raises as `metrics_of_each`.
    """
    if target is not None and target not in params.targets:
        raise UserError(f"--target {target} is not among the settings' targets {params.targets}; add it there")
    pace = Pace()
    metrics = metrics_of_each(backbone_for(params), runs, params, target, pace)
    return {key: _printed(of_run, pace) for key, of_run in metrics.items()}


def metrics_of_each(
    backbone: Backbone, runs: Sequence[RunToEvaluate], params: Params, target: str | None = None,
    pace: Pace | None = None,
) -> dict[RunKey, dict[str, Any]]:  # fmt: skip
    """Score each run's adapter and zero-shot on its own dataset's pool or a target's, write its files, and return what
    its metrics.json says. A run's files are the same whichever others are evaluated with it. `pace` gets the images
    and seconds of the passes.

    Raises UserError where the first run cannot be evaluated; any other such run is left out.
    """
    protocol = PROTOCOLS[params.data.protocol]
    shared = _shared(backbone, params, runs[0].key, target, pace or Pace())
    loaded: list[LoadedRun] = []
    for wanted in runs:
        with contextlib.suppress(UserError) if loaded else contextlib.nullcontext():
            loaded.append(_load(shared, wanted, params, target))
    tests = protocol.tests if target is None else (ALL,)
    scores = {test.part: _tested(shared, loaded, test) for test in tests}
    validation = _validation(shared, loaded, protocol) if target is None else [{} for _ in loaded]
    metrics = {}
    for index, run in enumerate(loaded):
        of_run = {part: each[index] for part, each in scores.items()}
        metrics[run.key] = _write(shared, run, params, target, of_run, validation[index])
    return metrics


def _write(
    shared: Shared, run: LoadedRun, params: Params, target: str | None, scores: dict[str, Figures],
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
        **_calibrated(_parts(scores, ADAPTED), scores, UNCALIBRATED),
        "zero_shot": _parts(scores, ZERO_SHOT),
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


def _shared(backbone: Backbone, params: Params, key: RunKey, target: str | None, pace: Pace) -> Shared:
    pool, store = paths.pool(target or key.dataset), open_store(params, "evaluate")
    trained = PROTOCOLS[params.data.protocol].trains_on if target is None else ()
    return Shared(backbone, pool, read_manifest(pool), trained, store, params.backbone, params.cluster, pace)


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


def _tested(shared: Shared, runs: list[LoadedRun], test: TestSet) -> list[Figures]:
    """Each run's figures on the test images of a part."""
    return [cast(Figures, one) for one in figures_on(shared, runs, "test", test)]  # there is an image


def _validation(shared: Shared, runs: list[LoadedRun], protocol: Protocol) -> list[dict[str, dict[str, float]]]:
    """Each run's figures on the trained classes' validation images, among these classes, without the gate's images."""
    part = protocol.trained_part
    test = TestSet(part, protocol.trains_on, protocol.trains_on)
    figures = figures_on(shared, runs, "val", test, lambda item: not is_gate_image(item))
    return [{part: one.summary(ADAPTED)} if one else {} for one in figures]


def _parts_of(scores: dict[str, Figures], variant: str, before: str) -> dict[str, Any]:
    """`_parts` of a variant, and of what it is without its temperatures; nothing where there is none."""
    if not all(variant in one.answers for one in scores.values()):
        return {}
    return _calibrated(_parts(scores, variant), scores, before)


def _calibrated(parts: dict[str, Any], scores: dict[str, Figures], before: str) -> dict[str, Any]:
    """Every part's figures with its calibration error before a temperature was applied, where one was."""
    return parts | {
        part: {**parts[part], "ece_uncalibrated": calibration_error(one.answers[before], one.labels)}
        for part, one in scores.items() if before in one.answers
    }  # fmt: skip


def _parts(scores: dict[str, Figures], kind: str) -> dict[str, Any]:
    """Every part's summary and metrics by class, the number of images, and the harmonic mean where there are base and
    novel, of one kind of probabilities."""
    summaries = {name: {**one.summary(kind), **one.by_class(kind)} for name, one in scores.items()}
    accuracies = {name: part["accuracy"] for name, part in summaries.items()}
    both = {"base", "novel"} <= accuracies.keys()
    mean = {"harmonic_mean": harmonic_mean(accuracies["base"], accuracies["novel"])} if both else {}
    return {**summaries, **mean, "n": sum(part["n"] for part in summaries.values())}


def outcomes(figures: Figures) -> Outcomes:
    """Whether each image was classified rightly by the adapter, and by zero-shot."""
    right = (figures.answers[kind].best == figures.labels for kind in (ADAPTED, ZERO_SHOT))
    return Outcomes(figures.items, *(one.numpy() for one in right))


def _printed(metrics: dict[str, Any], pace: Pace) -> dict[str, Any]:
    """What the command prints of a run."""
    accuracies = {part: metrics[part]["accuracy"] for part in metrics["parts"]}
    zero_shot = {f"zero_shot_{part}": metrics["zero_shot"][part]["accuracy"] for part in metrics["parts"]}
    mean = {"harmonic_mean": metrics["harmonic_mean"]} if "harmonic_mean" in metrics else {}
    return {**accuracies, **mean, **zero_shot, "images_per_second": pace.images_per_second}
