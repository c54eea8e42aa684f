"""The stages `fit_baselines` and `evaluate_baselines`: all baselines of the settings, all seeds, in one process each.

They are fitted on frozen features here, whatever the cluster; their evaluation is that of any run.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

from flows.project.paths import RunKey
from flows.project.progress import progress
from flows.project.resources import backbone_for, open_store
from flows.settings.params import Params
from flows.stages.train import data_card
from mmrl_core import METHOD_VERSION
from mmrl_core.config import BaselineConfig, parse
from mmrl_core.data.lacking import check_trained
from mmrl_core.data.shards import read_manifest
from mmrl_core.method.adapter_card import CardContent
from mmrl_core.protocols import PROTOCOLS

SHOWN = ("base", "novel", "all", "harmonic_mean")  # of what an evaluation prints of a run


def fit_baselines(params: Params, dataset: str, shots: int, out: Path) -> dict[str, Any]:
    """Fit every baseline of the settings for every seed, into folders of `out` as `paths.baselines` has them."""
    out.mkdir()
    keys = keys_of(params, dataset, shots)
    with progress(f"fit baselines {dataset} {shots}-shot", len(keys), what="baseline") as bar:
        for done, key in enumerate(keys, 1):
            fit(params, key, out / key.method / f"seed{key.seed}")
            bar(done)
    return {"baselines": params.baselines, "seeds": params.seeds}


def evaluate_baselines(
    params: Params, dataset: str, shots: int, out: Path, target: str | None = None
) -> dict[str, Any]:
    """Score them all, in one pass over the images where memory allows; what is printed is each one's mean over the
    seeds."""
    out.mkdir()
    keys = keys_of(params, dataset, shots)
    if not keys:
        return {}
    from flows.stages.evaluate import RunToEvaluate, evaluate_each, runs_at_once

    waiting = [RunToEvaluate(key, key.model, out / key.method / f"seed{key.seed}") for key in keys]
    for run in waiting:
        run.out.mkdir(parents=True)
    figures: dict[RunKey, dict[str, Any]] = {}
    while waiting:  # one that cannot be evaluated is left out, comes first in the end, and says why
        figures |= evaluate_each(params, waiting[: runs_at_once(waiting[0].key, target)], target)
        waiting = [run for run in waiting if run.key not in figures]
    return {
        baseline: {part: fmean(figures[key][part] for key in keys if key.method == baseline) for part in SHOWN
                   if part in next(iter(figures.values()))}
        for baseline in params.baselines
    }  # fmt: skip


def keys_of(params: Params, dataset: str, shots: int) -> list[RunKey]:
    """The runs of all baselines of a dataset with so many shots."""
    return [RunKey(dataset, baseline, shots, seed) for baseline in params.baselines for seed in params.seeds]


def fit(params: Params, key: RunKey, out: Path) -> dict[str, Any]:
    """Fit a baseline with the template that zero-shot has in the table."""
    from flows.tracking.run import tracked_run
    from flows.tuning.data import best_template, measured_templates
    from mmrl_core.baselines.fit import fit_baseline
    from mmrl_core.data.sets import read_set
    from mmrl_core.method.adapter import save_adapter

    protocol, manifest = PROTOCOLS[params.data.protocol], read_manifest(key.few_shot)
    check_trained(manifest, protocol.trains_on)
    backbone, store = backbone_for(params), open_store(params, "train")
    template = best_template(measured_templates(params, key.dataset))
    train, val = (read_set(key.few_shot, split, protocol.trains_on, template) for split in ("train", "val"))
    config = parse(BaselineConfig, {"method": key.method}, "baselines")
    settings = {"adapter.method": key.method}
    with tracked_run(params, key, "train", settings, {"data.digest": manifest["digest"]}) as run:
        baseline, abstain = fit_baseline(backbone, config, train, val, key.seed, store)
        card: CardContent = {
            "method_version": METHOD_VERSION,
            "class_names": train.class_names,
            "template": template,
            "data": data_card(key, manifest["digest"], len(train.items)),
            "training": protocol.training,
            "settings": settings,
            "sources": {"adapter.method": "run key"},
            "abstain": abstain,
        }
        document = save_adapter(out, baseline, backbone, card)
        run.set_tags({"adapter_sha256": document["sha256"]})
        run.log_artifacts(out)
    return {"adapter_sha256": document["sha256"], "trainable": document["trainable"]}
