"""The MLflow registry: registering adapters, and fetching them. promotion.py moves its aliases.

A registered version is known by the sha256 of its adapter's tensors and of what the card says of their use beside them,
so registering twice creates one version.
"""

import contextlib
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from flows.project.metrics import METRICS, read_metrics
from flows.project.paths import RunKey
from flows.registry.descriptions import description, is_due, of_model, served_kind
from flows.registry.model_files import LOCK, SETTINGS, check_model, save_model
from flows.settings.params import Params
from flows.tracking.locks import exclusive
from flows.tracking.run import git_commit
from flows.tracking.store import absolute, connect, experiment_id, store_errors, store_uri, transfer
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json, path_of, sha256_file
from mmrl_core.method.adapter_card import CARD, TENSORS, AdapterCard, read_unverified_card
from mmrl_core.protocols import PROTOCOLS
from mmrl_core.rounding import at_most, first_of_best

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

    from mmrl_core.predict import Predictor

Opened = TypeVar("Opened")
MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[0-9]{1,18}))")
OF_CARD = "card_digest"  # tag
UNMEASURED = {"accuracy": 0.0, "nll": 0.0}  # without validation images: the order of the lists


class RegisteredVersion(NamedTuple):
    """A version that holds a run's adapter; `created` is false where it was registered before."""

    name: str
    version: int
    adapter_sha256: str
    created: bool


class NamedVersion(NamedTuple):
    """A version that a `models:/` URI stands for now, and the adapter that the registry says it holds."""

    name: str
    version: int
    adapter_sha256: str | None


class FetchedVersion(NamedTuple):
    """A version downloaded into a folder: its verified adapter, and the settings that it was made with."""

    version: int
    tags: dict[str, str]
    adapter: Path
    settings: Path


def registered_name(dataset: str, protocol: str) -> str:
    """`digits-base-to-novel`."""
    return f"{dataset}-{protocol}"


def candidate(params: Params, dataset: str) -> RunKey:
    """The run of the matrix that is best on validation: by accuracy, then likelihood, then the order of the lists.

    Likelihoods within SCORE of the best are as good as it. Baselines take part where all classes are trained on: of
    others, which a baseline leaves to zero-shot, validation images tell nothing.
    Raises UserError naming runs that have no adapter or no metrics yet.
    """
    if dataset not in params.datasets:
        raise UserError(f"dataset {dataset!r} is not in the settings; datasets is {params.datasets}")
    kinds = params.methods if PROTOCOLS[params.data.protocol].new_classes else params.kinds
    keys = [RunKey(dataset, *axes) for axes in itertools.product(kinds, params.shots, params.seeds)]
    missing = [key.name for key in keys if not (key.model / CARD).exists() or not _metrics_file(key).exists()]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(f"{len(missing)} of {len(keys)} runs of {dataset} are missing ({some}); run `dvc repro`")
    validation = {key: next(iter(_metrics(key)["validation"].values()), UNMEASURED) for key in keys}
    best = max(figures["accuracy"] for figures in validation.values())
    right = [key for key in keys if at_most(best, validation[key]["accuracy"])]
    return first_of_best(right, lambda key: -validation[key]["nll"])


def _metrics_file(key: RunKey) -> Path:
    return key.results() / METRICS


def _metrics(key: RunKey) -> dict[str, Any]:
    return read_metrics(key.results(), ("validation", "parts", "adapter_sha256", "protocol", "preset", "data_digest"),
                        made_by="dvc repro")  # fmt: skip


def register(params: Params, key: RunKey) -> RegisteredVersion:
    """Register a run's adapter, once per content: a second call finds the version of the first.

    Raises UserError when the run's files do not belong together or the registry cannot be used.
    """
    uri, name = store_uri(params), registered_name(key.dataset, params.data.protocol)
    tags = facts(key, git_commit())
    sha256 = tags["adapter_sha256"]
    with exclusive(uri, f"registry-{name}"), store_errors(uri):
        client = connect(uri)
        known = same_adapter(tags_by_version(client, name), tags)
        version = _create_version(client, uri, name, key, tags, params) if known is None else known
        for tag, value in (tags | {"candidate_at": datetime.now(UTC).isoformat()}).items():
            client.set_model_version_tag(name, str(version), tag, value)  # an evaluation may be newer than the version
        _describe(client, params, version, key)
    return RegisteredVersion(name, version, sha256, created=known is None)


def facts(key: RunKey, commit: str | None) -> dict[str, str]:
    """The tags of a version: its run, its digests, and its metrics on the run's own dataset. Raises UserError when the
    run's files do not belong together."""
    keys = ("sha256", "data", "backbone")
    card, metrics = read_unverified_card(key.model, made_by="dvc repro", keys=keys), _metrics(key)
    if not (key.model / TENSORS).is_file():
        raise UserError(f"{key.model / TENSORS} is missing; run `dvc repro`")
    if sha256_file(key.model / TENSORS) != card["sha256"] or metrics["adapter_sha256"] != card["sha256"]:
        raise UserError(f"{key.model} and {key.results()} hold different adapters; run `dvc repro`")
    values = {
        **key._asdict(),
        "kind": served_kind(key.method, metrics),
        "protocol": metrics["protocol"],
        "adapter_sha256": card["sha256"],
        **_of_card(card),
        "data_digest": card["data"]["digest"],
        "pool_digest": metrics["data_digest"],
        "preset": metrics["preset"],
        "backbone": card["backbone"]["name"],
        "backbone_sha256": card["backbone"]["sha256"],
        **{f"{part}_accuracy": metrics[part]["accuracy"] for part in metrics["parts"]},
        **({"harmonic_mean": metrics["harmonic_mean"]} if "harmonic_mean" in metrics else {}),
        **({"git_commit": commit} if commit else {}),
        **({"dvc_lock_sha256": sha256_file(LOCK)} if LOCK.is_file() else {}),
    }
    return {name: str(value) for name, value in values.items()}


def _describe(client: "MlflowClient", params: Params, version: int, key: RunKey) -> None:
    """Give the version and its model the descriptions that are due."""
    name, text = registered_name(key.dataset, params.data.protocol), description(key, _metrics(key))
    if is_due(text, client.get_model_version(name, str(version)).description):
        client.update_model_version(name, str(version), text)
    text = of_model(key.dataset, params.data.protocol, params.registry.alias)
    if is_due(text, client.get_registered_model(name).description):
        client.update_registered_model(name, text)


def _of_card(card: AdapterCard) -> dict[str, str]:
    """Digest of how the tensors are used, which the card says: one cache of images can be weighed in many ways."""
    use = [card.get("head"), card.get("calibration")]
    return {OF_CARD: hashlib.sha256(canonical_json(use)).hexdigest()} if any(use) else {}


def same_adapter(versions: Mapping[int, Mapping[str, str]], tags: Mapping[str, str]) -> int | None:
    """Of versions and their tags, the first one that holds the adapter of these tags; None where none does."""
    return min((number for number, other in versions.items() if _is_same(other, tags)), default=None)


def _is_same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return all(one.get(tag) == other.get(tag) for tag in ("adapter_sha256", OF_CARD))


def _create_version(
    client: "MlflowClient", uri: str, name: str, key: RunKey, tags: dict[str, str], params: Params
) -> int:
    """Upload the model, then create the version with its tags at once: a killed process leaves none half-made."""
    experiment = experiment_id(client, uri, key.dataset)
    run = training_run(client, experiment, tags["adapter_sha256"])
    run_id = run and run.info.run_id
    with TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", key.model, params)
        model = _half_made(client, experiment, tags) or client.create_logged_model(
            experiment, name=name, source_run_id=run_id, tags=tags
        )
        with transfer(client):
            client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    _ensure_registered_model(client, name)
    # A server demands the id; without a server MLflow would look it up in the process's global store, not this one.
    model_id = model.model_id if uri.startswith("http") else None
    version = client.create_model_version(name, model.artifact_location, run_id=run_id, tags=tags, model_id=model_id)
    return int(version.version)


def _half_made(client: "MlflowClient", experiment: str, tags: dict[str, str]) -> "LoggedModel | None":
    """The logged model of a registration of this adapter that was killed, before there was a version."""
    from mlflow.exceptions import MlflowException

    where = f"tags.adapter_sha256 = '{tags['adapter_sha256']}'"
    for model in filter(lambda one: _is_same(one.tags, tags), client.search_logged_models([experiment], where)):
        with contextlib.suppress(MlflowException):
            if not client.search_model_versions(f"source_path = '{model.artifact_location}'"):
                return model
    return None


def training_run(client: "MlflowClient", experiment: str, sha256: str) -> "Run | None":
    """The run that trained the adapter of this sha256, the last of several."""
    runs = client.search_runs([experiment], f"tags.adapter_sha256 = '{sha256}'", max_results=1)
    return runs[0] if runs else None


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def versions_by_alias(client: "MlflowClient", name: str) -> dict[str, int]:
    """A model's versions by alias; MLflow gives int or str, by its store. Raises UserError for an unknown name."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"no model {name!r} is registered; run `mmrl register` first") from None
    return {alias: int(version) for alias, version in model.aliases.items()}


def tags_by_version(client: "MlflowClient", name: str) -> dict[int, dict[str, str]]:
    """The tags of every version of a model."""
    versions: dict[int, dict[str, str]] = {}
    token: str | None = None
    while token is None or token:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        versions |= {int(version.version): version.tags for version in page}
        token = page.token or ""
    return versions


def known_version(client: "MlflowClient", name: str, version: int | None) -> int:
    """The version, by default the one that `register` named last. Raises UserError where there is none."""
    versions = tags_by_version(client, name)
    if not versions:
        raise UserError(f"{name} has no versions; run `mmrl register` first")
    if version is not None and version not in versions:
        raise UserError(f"{name} has no version {version}; registered: {', '.join(map(str, sorted(versions)))}")
    return version or named_last(versions)


def named_last(versions: Mapping[int, Mapping[str, str]]) -> int:
    """Of versions and their tags, the one that `register` named last."""
    return max(versions, key=lambda number: (versions[number].get("candidate_at", ""), number))


def one_dataset(params: Params, dataset: str | None) -> str:
    """The dataset that is asked for, by default the settings' only one. Raises UserError where they name several."""
    if dataset is None and len(params.datasets) > 1:
        options = " or ".join(f"--dataset {name}" for name in params.datasets[:5])
        raise UserError(f"the settings name {len(params.datasets)} datasets; say which you mean: {options}")
    return dataset or params.datasets[0]


def model_of(params: Params, model: str | None, dataset: str | None) -> str:
    """The model that is asked for, by default `models:/NAME@ALIAS` of a dataset's champion. Raises as `one_dataset`."""
    if model and dataset:
        raise UserError("--model and --dataset both say which adapter; give one of them")
    if model:
        return model
    return f"models:/{registered_name(one_dataset(params, dataset), params.data.protocol)}@{params.registry.alias}"


def open_predictor(params: Params, model: str | None = None, dataset: str | None = None) -> "Predictor":
    """The predictor of an adapter folder or a `models:/` URI, or of a dataset's champion. Raises as `model_of`."""
    from mmrl_core.predict import Predictor

    return open_adapter(params, Predictor.load, model, dataset)


def open_adapter(
    params: Params, read: Callable[[Path], Opened], model: str | None = None, dataset: str | None = None
) -> Opened:
    """What `read` makes of the folder of that adapter. Raises as `model_of`."""
    model = model_of(params, model, dataset)
    if not model.startswith("models:"):
        return read(path_of(model))
    with TemporaryDirectory() as folder:
        return read(fetch(model, store_uri(params), folder).adapter)


def load(uri: str, tracking_uri: str | None = None, device: "str | torch.device" = "cpu") -> "Predictor":
    """The predictor behind `models:/name@alias` or `models:/name/3`, its adapter verified against the registry.

    `tracking_uri` is by default MLFLOW_TRACKING_URI, else the database of the working directory. Raises UserError.
    """
    from mmrl_core.predict import Predictor

    store = absolute(tracking_uri) if tracking_uri else store_uri()
    with TemporaryDirectory() as folder:
        return Predictor.load(fetch(uri, store, folder).adapter, device=device)


def fetch(uri: str, store: str, folder: str | Path) -> FetchedVersion:
    """Download a version into a folder. Raises Damaged when its adapter is not the one that was registered, StoreFailed
    where the store does not hand it out."""
    with store_errors(store):
        version, tags, model = _download(connect(store, create=False), store, uri, folder)
    return FetchedVersion(version, tags, check_model(model, tags.get("adapter_sha256"), uri), model / SETTINGS)


def _download(client: "MlflowClient", store: str, uri: str, folder: str | Path) -> tuple[int, dict[str, str], Path]:
    """The version's number and tags, and where its files are now."""
    from mlflow.artifacts import download_artifacts

    name, version = resolve(client, uri)
    tags = client.get_model_version(name, str(version)).tags
    source = client.get_model_version_download_uri(name, str(version))
    with transfer(client):
        model = download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=store)
    return version, tags, Path(model)


def resolve(client: "MlflowClient", uri: str) -> tuple[str, int]:
    """Name and version that `models:/name@alias` or `models:/name/3` stand for. Raises UserError for an unknown one."""
    match = MODEL_URI.fullmatch(uri)
    if not match:
        raise UserError(f"{uri!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
    name, aliases = match["name"], versions_by_alias(client, match["name"])
    if match["version"]:
        return name, known_version(client, name, int(match["version"]))
    if match["alias"] not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise UserError(f"{name} has no alias {match['alias']!r} (known: {known}); run `mmrl promote` first")
    return name, aliases[match["alias"]]


def named(client: "MlflowClient", uri: str) -> NamedVersion:
    """The version that a URI stands for, as `resolve`, and its adapter: its number alone can be used again."""
    name, version = resolve(client, uri)
    return NamedVersion(name, version, client.get_model_version(name, str(version)).tags.get("adapter_sha256"))
