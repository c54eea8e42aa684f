"""The stages as plain functions: read inputs, call mmrl_core, fill the output path they are given.

Each returns a small dict that the command line prints. None of them knows who started it.
"""

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

from flows.project import paths
from flows.project.features import open_store
from flows.project.outputs import locked
from flows.project.paths import RunKey
from flows.project.progress import progress
from flows.project.resources import backbone_of
from mmrl_core import METHOD_VERSION
from mmrl_core.config import Params
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json, read_json, write_json
from mmrl_core.presets import published
from mmrl_core.protocols import PROTOCOLS, labels_of

REPORTED = ("log_likelihood", "log_likelihood_se", "harmonic_mean", "harmonic_mean_se")  # of the search's choice


def fingerprint(params: Params, dataset: str, out: Path) -> dict[str, Any]:
    """Digest of the raw source: what `prepare` depends on."""
    from mmrl_core.data.catalog import fingerprint as read_fingerprint

    facts = read_fingerprint(dataset, params.data.root, params.data.own)
    write_json(out, facts)
    return facts


def fingerprint_training(params: Params, out: Path) -> dict[str, Any]:
    """What search and training depend on of the protocol: two that agree in it share their adapters."""
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
    return {"digest": manifest["digest"], **manifest["counts"], **_notes(manifest)}


def _notes(manifest: dict) -> dict[str, list[str]]:
    return {"notes": manifest["notes"]} if manifest["notes"] else {}


def prepare_few_shot(params: Params, dataset: str, shots: int, seed: int, out: Path) -> dict[str, Any]:
    """Few-shot train and val shards of one sampling seed."""
    from mmrl_core.data.catalog import open_source
    from mmrl_core.data.shards import write_few_shot

    out.mkdir()
    source, n_base = open_source(dataset, params.data.root, params.data.own), params.data.base_classes
    with progress(f"prepare {dataset} {shots}-shot seed {seed}", unit="images") as report:
        manifest = write_few_shot(source, shots, seed, out, report, n_base=n_base)
    short = {"classes_with_fewer_items": manifest["short_classes"]} if manifest["short_classes"] else {}
    return {"digest": manifest["digest"], **manifest["counts"], **short, **_notes(manifest)}


def tune(params: Params, dataset: str, method: str, out: Path) -> dict[str, Any]:
    """Settle the prompt template and the open settings, on labelled items of the trained classes alone."""
    from flows.tuning.search import tune as run_search

    found = run_search(params, dataset, method)
    head = {"dataset": dataset, "method": method, "shots": max(params.shots), "seeds": params.seeds}
    write_json(out, {**head, **found})
    best = found["trials"][found["chosen"]] if found["trials"] else {}
    scores = {name: best[name] for name in REPORTED if best}
    return {"trials": len(found["trials"]), "choice": found["choice"], "template": found["template"], **scores}


def confirm(params: Params, dataset: str, method: str, seeds: list[int]) -> dict[str, Any]:
    """The search's choice against the published setting, on seeds that it did not see."""
    from flows.tuning.confirm import confirm as compare

    return compare(params, dataset, method, seeds)


def train(params: Params, key: RunKey, out: Path) -> dict[str, Any]:
    """Train one adapter, resuming from a killed run of the same settings and data."""
    from flows.tracking.store import tracked_run
    from mmrl_core.data.sets import read_set
    from mmrl_core.data.shards import read_manifest
    from mmrl_core.method.adapter import save_adapter
    from mmrl_core.presets import resolve

    backbone, manifest = backbone_of(params.backbone), read_manifest(key.few_shot)
    found = read_search(key, manifest["templates"])
    choice = found["choice"] if params.search.enabled else {}
    settings = resolve(params, key.dataset, key.method, key.seed, backbone.depth, choice)
    if not (params.cluster.is_distributed and params.cluster.gpus_per_worker):  # else the workers' GPUs settle it
        settings = _on_device(settings, backbone.device)
    protocol = PROTOCOLS[params.data.protocol]
    data = read_set(key.few_shot, "train", protocol.trains_on, found["template"])
    card = _card(params, key, settings, data, manifest["digest"])
    with (
        tracked_run(params, key, "train", card["settings"], {"data.digest": manifest["digest"]}) as run,
        progress(f"train {key.name}", settings.train.epochs, what="epoch") as bar,
    ):

        def report(epoch: int, metrics: dict[str, float], workers: int = 1) -> None:
            run.log_metrics(metrics, epoch)
            beside = f", {workers} workers" if workers > 1 else ""
            bar(epoch + 1, note=f"loss {metrics['loss']:.3f}{beside}")

        identity = _identity(card, backbone)
        with locked(f"run-{identity}", f"another process trains {key.name}"):  # in another worktree of this project
            adapter, history, precision = _fit(params, key, backbone, settings, data, identity, report)
        card["history"], card["settings"]["train.precision"] = history, precision
        card["abstain"] = _abstain(backbone, adapter, data, key, protocol.trains_on)
        document = save_adapter(out, adapter, backbone, card)
        run.set_tags({"adapter_sha256": document["sha256"]})
        run.log_artifacts(out)
    return {"adapter_sha256": document["sha256"], "trainable": document["trainable"], **history[-1]}


def _fit(params: Params, key: RunKey, backbone, settings, data, identity: str, report):
    """The adapter, the metrics of its epochs and the precision, trained here or on the cluster."""
    from mmrl_core.training.fit import fit

    if params.cluster.is_distributed:
        return _fit_on_cluster(params, key, backbone, settings, data, identity, report)
    checkpoints, store = paths.STATE / "runs" / identity, open_store(params, "train")
    fitted = fit(backbone, settings.adapter, settings.train, data, report=report, checkpoints=checkpoints, store=store)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return fitted


def _fit_on_cluster(params: Params, key: RunKey, backbone, settings, data, identity: str, report):
    from safetensors.torch import load

    from flows.cluster.training import Job, train_on_cluster
    from mmrl_core.data.shards import read_examples, read_manifest
    from mmrl_core.training.fit import Fitted, check_division, new_adapter

    most = params.cluster.worker_range[1]
    check_division(most, settings.train.batch_size, len(data.items), len(data.class_names))
    halves, manifest = PROTOCOLS[params.data.protocol].trains_on, read_manifest(key.few_shot)
    examples = [example for half in halves for example in read_examples(key.few_shot, "train", half)]
    labels = labels_of(manifest, halves)
    job = Job(identity, params.backbone, settings.adapter, settings.train, examples, labels,
              manifest["class_names"], data.template)  # fmt: skip
    trained = train_on_cluster(params.cluster, job, paths.STATE / "runs", report)
    adapter = new_adapter(settings.adapter, backbone, settings.train.seed)
    adapter.load_state_dict(load(trained.adapter))
    return Fitted(adapter, trained.history, trained.precision)


def _abstain(backbone, adapter, data, key: RunKey, halves: tuple[str, ...]) -> dict[str, Any] | None:
    """The threshold for "none of these", from the few-shot validation images."""
    from mmrl_core.data.shards import stream_examples
    from mmrl_core.evaluation.abstain import calibrate
    from mmrl_core.method.model import AdaptedCLIP

    model = AdaptedCLIP(backbone, adapter, data.class_names, data.template)
    return calibrate(model, (example for half in halves for example in stream_examples(key.few_shot, "val", half)))


def _on_device(settings, device):
    """With the precision that training will have there: the adapter's card says what was, not `auto`."""
    from mmrl_core.clip.precision import settle_precision

    precision = settle_precision(settings.train.precision, device)
    return settings._replace(train=settings.train.model_copy(update={"precision": precision}))


def read_search(key: RunKey, templates: list[str]) -> dict[str, Any]:
    """The search that a run's training goes by. Raises UserError where there is none or it is of something else."""
    path = paths.search(key.dataset, key.method)
    found = read_json(path, made_by="mmrl tune", keys=("dataset", "method", "choice", "template"))
    fits = set(found["choice"]) <= set(published(key.dataset, key.method, depth=1)) and found["template"] in templates
    if (found["dataset"], found["method"]) != (key.dataset, key.method) or not fits:
        raise UserError(f"{path} is of another search than {key.dataset} {key.method}; run `mmrl tune` again")
    return found


def _card(params: Params, key: RunKey, settings, data, digest: str) -> dict[str, Any]:
    """What adapter.json says of a run beside the tensors."""
    values = {"adapter": settings.adapter.model_dump(), "train": settings.train.model_dump()}
    flat = {f"{section}.{name}": value for section, group in values.items() for name, value in group.items()}
    return {
        "method_version": METHOD_VERSION,
        "class_names": data.class_names,
        "template": data.template,
        "data": {**key._asdict(), "digest": digest, "images": len(data.items)},
        "training": PROTOCOLS[params.data.protocol].training,
        "settings": flat,
        "sources": settings.sources,
    }


def _identity(card: dict[str, Any], backbone) -> str:
    """A run's name for its checkpoints: settled by everything that its result depends on."""
    return hashlib.sha256(canonical_json([card, backbone.weights_sha256])).hexdigest()[:16]


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


def summarize(params: Params, out: Path) -> dict[str, Any]:
    """Tables and the report over all runs that the matrix names; others under results/ are listed as stale."""
    from flows.report.summary import summarize as write_reports

    return write_reports(params, out)


def import_published(
    params: Params, checkpoint: Path, class_names: list[str], template: str, out: Path
) -> dict[str, Any]:
    """An adapter folder from a checkpoint of the authors' code; what the tensors do not tell comes from params.yaml."""
    from mmrl_core.clip.backbone import refuse_repeated
    from mmrl_core.config import AdapterConfig, parse
    from mmrl_core.files import sha256_file
    from mmrl_core.method.adapter import Adapter, save_adapter
    from mmrl_core.method.published_checkpoints import implied_settings, read_published

    refuse_repeated(class_names)
    published, backbone = read_published(checkpoint), backbone_of(params.backbone)
    implied = implied_settings(published, backbone.depth)
    explicit = {name: value for name, value in params.adapter.model_dump().items() if value is not None}
    config = parse(AdapterConfig, {**explicit, **implied}, str(checkpoint))
    adapter = Adapter(config, backbone)
    adapter.load_published(published)
    backbone.tokenize(class_names, template)  # refuses names or a template that no prompt can be made of
    sources = {
        f"adapter.{name}": "checkpoint" if name in implied else "params.yaml" for name in {**explicit, **implied}
    }
    card = {
        "method_version": METHOD_VERSION,
        "class_names": class_names,
        "template": template,
        "data": {"imported_from": checkpoint.name, "digest": sha256_file(checkpoint)},
        "settings": {f"adapter.{name}": value for name, value in config.model_dump().items()},
        "sources": {f"adapter.{name}": "default" for name in type(config).model_fields} | sources,
    }
    document = save_adapter(out, adapter, backbone, card)
    return {"method": config.method, "adapter_sha256": document["sha256"], "trainable": document["trainable"]}
