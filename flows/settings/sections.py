"""The sections of params.yaml, each with what its keys may be.

A null under `adapter` or `train` means "the search's choice, else the preset"; see resolve.py.
"""

import math
import re
from os.path import expanduser
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mmrl_core.config import Fraction, LocalPath, NonNegative, PositiveFloat, PositiveInt, Precision, Section, Seed
from mmrl_core.data.own.settings import OwnSection

WHOLE_NUMBERS = ("insertion_depth", "n_tokens", "rep_dim", "residual_rank", "projection_rank",
                 "epochs", "batch_size", "warmup_epochs")  # fmt: skip


PathOrURL = Annotated[str, AfterValidator(expanduser)]
Distribution = dict[str, list[int | float]]  # choice, uniform or loguniform -> its values
Space = dict[str, Distribution]  # dimensions of a search, by dotted key


class DataSection(Section):
    root: LocalPath = "data/raw"
    protocol: Literal["base-to-novel", "few-shot", "cross-dataset", "domain-generalization", "joint"] = "base-to-novel"
    base_classes: PositiveInt | None = None
    own: dict[str, OwnSection] = {}

    @field_validator("own")
    @classmethod
    def _plain_names(cls, own: dict[str, OwnSection]) -> dict[str, OwnSection]:
        for name in own:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(f"the name {name!r} must be of letters, digits, _ and - (it names folders)")
        return own


class BackboneSection(Section):
    name: str = "tiny"
    weights: LocalPath | None = None


class AdapterSection(Section):
    insertion_depth: PositiveInt | None = None
    n_tokens: PositiveInt | None = None
    rep_dim: PositiveInt | None = None
    residual_rank: PositiveInt | None = None
    projection_rank: PositiveInt | None = None
    alpha: Fraction | None = None
    beta: Fraction | None = None
    reg_weight: NonNegative | None = None


class TrainSection(Section):
    epochs: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    lr: PositiveFloat | None = None
    warmup_epochs: Annotated[int, Field(ge=0, strict=True)] | None = None
    precision: Precision | None = None


class SearchSection(Section):
    """The search of open settings.

    `concurrent`: trials side by side; null: as many as the cluster has room for. `scheduler`: race ends a trial once it
    is clearly behind the best one, asha and median by rank among all that got as far. `warm_start`: which settings are
    tried first, the published ones or besides them the best of earlier searches on the dataset.
    """

    enabled: bool = True
    trials: PositiveInt = 8
    concurrent: PositiveInt | None = 1
    space: Space = {}
    searcher: Literal["optuna", "random", "grid"] = "optuna"
    scheduler: Literal["race", "asha", "median", "none"] = "race"
    warm_start: Literal["published", "earlier", "none"] = "published"
    objective: Literal["log_likelihood", "harmonic_mean"] = "log_likelihood"
    second_objective: Literal["trainable_parameters", "step_time"] | None = None
    validation: Literal["few_shot", "full"] = "few_shot"
    partitions: PositiveInt = 2
    seed: Seed = 0

    @field_validator("space")
    @classmethod
    def _known_dimensions(cls, space: Space) -> Space:
        for key, distribution in space.items():
            _check_dimension(key, distribution)
        return space

    @model_validator(mode="after")
    def _grid_is_finite(self) -> "SearchSection":
        if self.searcher != "grid":
            return self
        for key, distribution in self.space.items():
            if "choice" not in distribution:
                raise ValueError(f"search.searcher is grid: give search.space {key} as a choice of values")
        cells = math.prod(len(distribution["choice"]) for distribution in self.space.values())
        if cells > self.trials:
            raise ValueError(f"the grid of search.space has {cells} settings, search.trials is {self.trials}; raise it")
        return self


class WorkerRange(Section):
    """A training that goes on with fewer workers when nodes go, and grows back when they return."""

    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _ascends(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"from {self.min} to {self.max} is no range")
        return self


def _as_range(workers: Any) -> Any:
    """A number means as many, always."""
    if isinstance(workers, bool) or not isinstance(workers, int | dict | WorkerRange):
        raise ValueError("give a number, or {min: 1, max: 4}")
    if isinstance(workers, int) and workers < 1:
        raise ValueError("at least one is needed")
    return {"min": workers, "max": workers} if isinstance(workers, int) else workers


class ClusterSection(Section):
    """The Ray cluster, what of it a trial of the search takes, and how a training is spread over it.

    `cpus_per_trial`, null: on this machine what `search.concurrent` trials leave each of its cores, elsewhere 1. A
    fraction of a GPU is shared by as many trials or workers as fit. `storage` is a path or URI that every node
    reaches, for checkpoints; `data` is where nodes find what lies in data/ here, null: it travels to them.
    """

    address: str = "local"
    cpus_per_trial: PositiveFloat | None = None
    gpus_per_trial: NonNegative = 0
    workers: Annotated[WorkerRange, BeforeValidator(_as_range)] = WorkerRange(min=1, max=1)
    cpus_per_worker: PositiveFloat = 1
    gpus_per_worker: NonNegative = 0
    storage: PathOrURL | None = None
    data: PathOrURL | None = None

    @property
    def is_distributed(self) -> bool:
        """Whether training and evaluation run as tasks of the cluster, and not in this process."""
        return self.address != "local" or self.worker_range != (1, 1)

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the most workers of a training."""
        return self.workers.min, self.workers.max

    @field_validator("address")
    @classmethod
    def _reachable(cls, address: str) -> str:
        if address.startswith("ray://"):
            raise ValueError("run mmrl on a node of the cluster, such as by `ray job submit`, and say auto")
        if address not in ("local", "auto") and not re.fullmatch(r"[^/\s:]+:\d+", address):
            raise ValueError("it must be local, auto or host:port")
        return address

    @field_validator("storage")
    @classmethod
    def _reached_by_every_node(cls, storage: str | None) -> str | None:
        if storage is not None and not storage.startswith("/") and "://" not in storage:
            raise ValueError("give an absolute path or a URI such as s3://bucket/folder, which every node reaches")
        return storage


class FeaturesSection(Section):
    """Where frozen features are kept between runs; no result depends on it.

    `cache`: `tune`, the search keeps them, which needs each many times, and training reads them; `always`, all stages
    keep them; `never`.
    """

    cache: Literal["tune", "always", "never"] = "tune"
    budget_gb: PositiveFloat = 20.0


class RegistrySection(Section):
    """The alias that says what is live, and the bounds of the promotion gate (mmrl_core/evaluation/gate.py)."""

    alias: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")] = "champion"
    margin: Fraction = 0.0
    significance: Annotated[PositiveFloat, Field(lt=0.5)] = 0.05
    novel_loss: Fraction = 0.05
    latency: PositiveFloat = 1.5

    @field_validator("alias")
    @classmethod
    def _is_free(cls, alias: str) -> str:
        if alias in ("challenger", "previous", "released", "latest"):
            raise ValueError("the registry uses it itself; choose another")
        return alias


class ServingSection(Section):
    """`mmrl serve`. No result depends on it.

    `replicas`: processes that answer; of a range, as many as the requests keep busy. A batch is scored once it is
    full or its first image has waited for `batch_wait_ms`, at once while no other request is there; size 1 turns
    batching off. Of an image, `max_bytes` counts
    the encoded and `max_pixels` the decoded size. The registry is asked every `poll_seconds` what the alias names.
    `log_share` of the predictions are written to .mmrl/predictions. Images named by a URL are fetched where it is below
    one of `url_prefixes`.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, strict=True)] = 8000  # 0: any free one
    replicas: Annotated[WorkerRange, BeforeValidator(_as_range)] = WorkerRange(min=1, max=1)
    cpus_per_replica: PositiveFloat = 1
    batch_size: PositiveInt = 16
    batch_wait_ms: NonNegative = 10
    max_bytes: PositiveInt = 10_000_000
    max_pixels: PositiveInt = 50_000_000
    max_classes: PositiveInt = 1000
    url_prefixes: list[str] = []
    poll_seconds: PositiveFloat = 5
    log_share: Fraction = 0

    @field_validator("url_prefixes")
    @classmethod
    def _are_folders(cls, prefixes: list[str]) -> list[str]:
        for prefix in prefixes:
            parts = urlsplit(prefix)
            plain = parts.hostname and not (parts.username or parts.query or parts.fragment)
            if parts.scheme not in ("http", "https") or not plain or not parts.path.endswith("/"):
                raise ValueError(f"{prefix!r} is no http(s) address that ends with a slash, as https://HOST/FOLDER/")
        return prefixes


class TrackingSection(Section):
    uri: str = "sqlite:///mlflow.db"


def _check_dimension(key: str, distribution: Distribution) -> None:
    """A search dimension must be a known numeric key of `adapter` or `train`, with values that key accepts."""
    section, _, field = key.partition(".")
    sections: dict[str, type[Section]] = {"adapter": AdapterSection, "train": TrainSection}
    model = sections.get(section)
    if model is None or field not in model.model_fields:
        raise ValueError(f"search.space names {key!r}, which is no key of adapter or train")
    if len(distribution) != 1 or next(iter(distribution)) not in ("choice", "uniform", "loguniform"):
        raise ValueError(f"{key} needs exactly one of choice, uniform, loguniform")
    kind, values = next(iter(distribution.items()))
    if kind != "choice" and field in WHOLE_NUMBERS:
        raise ValueError(f"{key} takes whole numbers: give a choice instead of {kind}")
    ordered = kind == "choice" or (len(values) == 2 and values[0] < values[1])
    if not values or not ordered or (kind == "loguniform" and values[0] <= 0):
        raise ValueError(f"{key}: {kind} of {values} is no range; give [low, high] or a list of choices")
    for value in values:
        model.model_validate({field: value})
