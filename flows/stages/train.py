"""The stage `train`: one adapter, in this process or on a Ray cluster."""

import hashlib
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flows.project import paths
from flows.project.outputs import locked
from flows.project.paths import RunKey
from flows.project.progress import progress
from flows.project.resources import backbone_for, device_here, open_store
from flows.settings.params import Params
from flows.settings.resolve import resolve, settings_by_key
from mmrl_core import METHOD_VERSION
from mmrl_core.data.shards import read_examples, read_manifest
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json
from mmrl_core.method.adapter_card import CardContent, DataCard
from mmrl_core.presets import published
from mmrl_core.protocols import BASELINES, PROTOCOLS, labels_of
from mmrl_core.search.trial import SearchFile, read_search_file

if TYPE_CHECKING:
    import torch

    from flows.tracking.run import Tracked
    from mmrl_core.clip.backbone import Backbone
    from mmrl_core.config import Resolved
    from mmrl_core.data.sets import ImageSet
    from mmrl_core.training.fit import Fitted


class EpochReport(Protocol):
    """Called after each epoch, counted from 0, with its metrics and the number of workers that trained it."""

    def __call__(self, epoch: int, metrics: dict[str, float], workers: int = 1) -> None: ...


def train(params: Params, key: RunKey, out: Path) -> dict[str, Any]:
    """Train one adapter, resuming from a killed run of the same settings and data; or fit a baseline."""
    if key.method in BASELINES:
        from flows.stages.baselines import fit

        return fit(params, key, out)
    run, backbone = ready_to_train(params, key), backbone_for(params)
    with (
        tracked(params, run) as record,
        progress(f"train {key.name}", run.settings.train.epochs, what="epoch") as bar,
    ):

        def report(epoch: int, metrics: dict[str, float], workers: int = 1) -> None:
            record.log_metrics(metrics, epoch)
            beside = f", {workers} workers" if workers > 1 else ""
            bar(epoch + 1, note=f"loss {metrics['loss']:.3f}{beside}")

        with locked(f"run-{run.identity}", f"another process trains {key.name}"):  # in another worktree of this project
            fitted = _fit(params, backbone, run, report)
        return finished(params, run, backbone, fitted, record, out)


class ReadyRun(NamedTuple):
    """A run whose data are read and whose settings are settled. `card` is of its adapter, without what training adds;
    `identity` names its checkpoints."""

    key: RunKey
    data: "ImageSet"
    val: "ImageSet"
    settings: "Resolved"
    card: CardContent
    identity: str


def ready_to_train(params: Params, key: RunKey) -> ReadyRun:
    """Raises UserError where data or search are missing, and where memory surely is too small."""
    from mmrl_core.data.lacking import check_trained
    from mmrl_core.data.sets import read_set

    protocol, manifest = PROTOCOLS[params.data.protocol], read_manifest(key.few_shot)
    check_trained(manifest, protocol.trains_on)
    search = read_search(key, manifest["templates"])
    choice = search["choice"] if params.search.enabled else {}
    data, val = (read_set(key.few_shot, split, protocol.trains_on, search["template"]) for split in ("train", "val"))
    _refuse_too_large(params, key, choice, data)
    backbone = backbone_for(params)
    settings = _settings(params, key, backbone, choice)
    card = _card(params, key, settings, data, manifest["digest"])
    return ReadyRun(key, data, val, settings, card, _identity(card, backbone))


def tracked(params: Params, run: ReadyRun) -> AbstractContextManager["Tracked"]:
    """The run in the tracking store."""
    from flows.tracking.run import tracked_run

    return tracked_run(params, run.key, "train", run.card["settings"], {"data.digest": run.card["data"]["digest"]})


def finished(
    params: Params, run: ReadyRun, backbone: "Backbone", fitted: "Fitted", record: "Tracked", out: Path
) -> dict[str, Any]:
    """Give the trained adapter what validation has for it and save it to `out`; returns the stage's summary."""
    from mmrl_core.baselines.finish import finish
    from mmrl_core.method.adapter import save_adapter

    (adapter, history, precision), card = fitted, run.card
    card["history"], card["settings"]["train.precision"] = history, precision
    card["abstain"] = finish(backbone, adapter, run.data, run.val, open_store(params, "train"))
    document = save_adapter(out, adapter, backbone, card)
    record.set_tags({"adapter_sha256": document["sha256"]})
    record.log_artifacts(out)
    return {"adapter_sha256": document["sha256"], "trainable": document["trainable"], **history[-1]}


def _refuse_too_large(params: Params, key: RunKey, choice: dict[str, Any], data: "ImageSet") -> None:
    """UserError where this machine surely has too little memory, before the backbone is loaded."""
    from mmrl_core.estimate.fits import refuse_unloaded, shape_of_named

    shape = shape_of_named(params.backbone.name)
    if shape is None or params.cluster.is_distributed or not data.items:
        return
    settings = resolve(params, key.dataset, key.method, key.seed, shape.depth, choice)
    device = device_here(params.device)
    refuse_unloaded(
        params.backbone.name, settings.adapter, settings.train, len(data.items), len(data.class_names), device
    )


def _fit(params: Params, backbone: "Backbone", run: ReadyRun, report: EpochReport) -> "Fitted":
    """The adapter, the metrics of its epochs and the precision, trained here or on the cluster."""
    from mmrl_core.training.fit import fit

    if params.cluster.is_distributed:
        return _fit_on_cluster(params, run.key, backbone, run.settings, run.data, run.identity, report)
    checkpoints, store, settings = paths.STATE / "runs" / run.identity, open_store(params, "train"), run.settings
    fitted = fit(backbone, settings.adapter, settings.train, run.data, val=run.val, report=report,
                 checkpoints=checkpoints, store=store)  # fmt: skip
    shutil.rmtree(checkpoints, ignore_errors=True)
    return fitted


def _fit_on_cluster(
    params: Params, key: RunKey, backbone: "Backbone", settings: "Resolved", data: "ImageSet", identity: str,
    report: EpochReport,
) -> "Fitted":  # fmt: skip
    from safetensors.torch import load

    from flows.cluster.training import TrainingJob, train_on_cluster
    from mmrl_core.training.fit import Fitted, check_division, new_adapter

    most = params.cluster.worker_range[1]
    check_division(most, settings.train.batch_size, len(data.items), len(data.class_names))
    halves, manifest = PROTOCOLS[params.data.protocol].trains_on, read_manifest(key.few_shot)
    train, val = ([example for half in halves for example in read_examples(key.few_shot, split, half)]
                  for split in ("train", "val"))  # fmt: skip
    labels = labels_of(manifest, halves)
    job = TrainingJob(identity, params.backbone, settings.adapter, settings.train, train, val, labels,
                      manifest["class_names"], data.template)  # fmt: skip
    trained = train_on_cluster(params.cluster, job, paths.STATE / "runs", report)
    adapter = new_adapter(settings.adapter, backbone, settings.train.seed)
    adapter.load_state_dict(load(trained.adapter))
    return Fitted(adapter, trained.history, trained.precision)


def _settings(params: Params, key: RunKey, backbone: "Backbone", choice: dict[str, Any]) -> "Resolved":
    settings = resolve(params, key.dataset, key.method, key.seed, backbone.depth, choice)
    if params.cluster.is_distributed and params.cluster.gpus_per_worker:  # the precision depends on the workers' GPUs
        return settings
    return _on_device(settings, backbone.device)


def _on_device(settings: "Resolved", device: "torch.device") -> "Resolved":
    """The settings with the precision that training has on the device: the adapter's card says that, not `auto`."""
    from mmrl_core.clip.precision import settle_precision

    precision = settle_precision(settings.train.precision, device)
    return settings._replace(train=settings.train.model_copy(update={"precision": precision}))


def read_search(key: RunKey, templates: list[str]) -> SearchFile:
    """The search whose choice a run is trained with. Raises UserError where there is none, or one of something else."""
    path, made_by = paths.search(key.dataset, key.method), paths.search_command(key.dataset, key.method)
    search = read_search_file(path, ("dataset", "method", "choice", "template"), made_by=made_by)
    fits = set(search["choice"]) <= set(published(key.dataset, key.method, depth=1)) and search["template"] in templates
    if (search["dataset"], search["method"]) != (key.dataset, key.method) or not fits:
        raise UserError(f"{path} is of another search than {key.dataset} {key.method}; run `{made_by}` again")
    return search


def _card(params: Params, key: RunKey, settings: "Resolved", data: "ImageSet", digest: str) -> CardContent:
    """What adapter.json says of a run beside the tensors."""
    return {
        "method_version": METHOD_VERSION,
        "class_names": data.class_names,
        "template": data.template,
        "data": data_card(key, digest, len(data.items)),
        "training": PROTOCOLS[params.data.protocol].training,
        "settings": settings_by_key(settings),
        "sources": settings.sources,
    }


def data_card(key: RunKey, digest: str, images: int) -> DataCard:
    """What adapter.json says of a run's few-shot set."""
    return {"dataset": key.dataset, "method": key.method, "shots": key.shots, "seed": key.seed, "digest": digest,
            "images": images}  # fmt: skip


def _identity(card: CardContent, backbone: "Backbone") -> str:
    """The name of a run's checkpoints: a digest of everything that its result depends on."""
    return hashlib.sha256(canonical_json([card, backbone.weights_sha256])).hexdigest()[:16]
