"""The sections of params.yaml, each with what its keys may be.

A null under `adapter` or `train` means "the search's choice, else the preset"; see resolve.py.
"""

import math
import re
from os.path import expanduser
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, field_validator, model_validator

from flows.settings import addresses
from mmrl_core.config import (
    Augmentation,
    Fraction,
    LocalPath,
    NonNegative,
    PositiveFloat,
    PositiveInt,
    Precision,
    Probe,
    Section,
    Seed,
    TokenCount,
    Views,
    no_boolean_off,
)
from mmrl_core.data.own.settings import OwnSection

WHOLE_NUMBERS = ("insertion_depth", "n_tokens", "rep_dim", "residual_rank", "projection_rank",
                 "epochs", "batch_size", "warmup_epochs")  # fmt: skip
WORDS = ("augmentation",)  # keys that the search may choose and that are no number


def _as_written(value: Any) -> int | float | str:
    """A number, whole or not, or a word."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a number is needed")
    return value


Distribution = dict[str, list[Annotated[Any, PlainValidator(_as_written)]]]  # choice, uniform or loguniform
Space = dict[str, Distribution]  # dimensions of a search, by dotted key

Text = Annotated[str, AfterValidator(addresses.text)]
TextPath = Annotated[LocalPath, AfterValidator(addresses.text)]
# More than any machine has or any run takes, and little enough for whatever the number is given to.
Width = Annotated[PositiveInt, Field(le=65_536)]
Many = Annotated[PositiveInt, Field(le=100_000)]
Workers = Annotated[PositiveInt, Field(le=10_000)]
Cores = Annotated[PositiveFloat, Field(ge=0.0001, le=100_000)]  # Ray counts in ten-thousandths
Gpus = Annotated[NonNegative, Field(le=1000)]


def _is_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        raise ValueError("a dataset's name is of at most 100 letters, digits, _ and - (it names folders)")
    return name


DatasetName = Annotated[str, AfterValidator(_is_name)]


class DataSection(Section):
    root: TextPath = "data/raw"
    protocol: Literal["base-to-novel", "few-shot", "cross-dataset", "domain-generalization", "joint"] = "base-to-novel"
    base_classes: Annotated[PositiveInt, Field(le=1_000_000)] | None = None
    own: dict[str, OwnSection] = {}

    @field_validator("own")
    @classmethod
    def _plain_names(cls, own: dict[str, OwnSection]) -> dict[str, OwnSection]:
        for name in own:
            try:
                _is_name(name)
            except ValueError as error:
                raise ValueError(f"{name[:100]!r} is no name: {error}") from None
        return own


class BackboneSection(Section):
    name: Text = "tiny"
    weights: TextPath | None = None


class AdapterSection(Section):
    insertion_depth: Annotated[PositiveInt, Field(le=1000)] | None = None
    n_tokens: TokenCount | None = None
    rep_dim: Width | None = None
    residual_rank: Width | None = None
    projection_rank: Width | None = None
    alpha: Fraction | None = None
    probe: Annotated[Probe, BeforeValidator(no_boolean_off)] | None = None
    beta: Fraction | None = None
    reg_weight: Annotated[NonNegative, Field(le=1_000_000)] | None = None


class TrainSection(Section):
    epochs: Many | None = None
    batch_size: Many | None = None
    lr: Annotated[PositiveFloat, Field(ge=1e-12, le=1000)] | None = None
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000, strict=True)] | None = None
    precision: Precision | None = None
    views: Views | None = None
    augmentation: Augmentation | None = None


class SearchSection(Section):
    """The search of open settings.

    `concurrent`: trials side by side; null: as many as the cluster has room for. `scheduler`: race ends a trial once it
    is clearly behind the best one, asha and median by rank among all that got as far. `warm_start`: which settings are
    tried first, the published ones or besides them the best of earlier searches on the dataset.
    """

    enabled: bool = True
    trials: Many = 8
    concurrent: Workers | None = 1
    space: Space = {}
    searcher: Literal["optuna", "random", "grid"] = "optuna"
    scheduler: Literal["race", "asha", "median", "none"] = "race"
    warm_start: Literal["published", "earlier", "none"] = "published"
    objective: Literal["log_likelihood", "harmonic_mean"] = "log_likelihood"
    second_objective: Literal["trainable_parameters", "step_time"] | None = None
    validation: Literal["few_shot", "full"] = "few_shot"
    partitions: Annotated[PositiveInt, Field(le=1000)] = 2
    seed: Annotated[Seed, Field(le=4_000_000_000)] = 0  # Optuna's are of 32 bits

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

    min: Workers
    max: Workers

    @model_validator(mode="after")
    def _ascends(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"from {self.min} to {self.max} is no range")
        return self


def _as_range(workers: Any) -> Any:
    """A number means as many, always."""
    if isinstance(workers, bool) or not isinstance(workers, int | dict | WorkerRange):
        raise ValueError("give a number, or {min: 1, max: 4}")
    if isinstance(workers, int) and not 1 <= workers <= 10_000:
        raise ValueError("at least one is needed, and more than 10,000 are none")
    return {"min": workers, "max": workers} if isinstance(workers, int) else workers


class ClusterSection(Section):
    """The Ray cluster, what of it a trial of the search takes, and how a training is spread over it.

    `cpus_per_trial`, null: on this machine what `search.concurrent` trials leave each of its cores, elsewhere 1. A
    fraction of a GPU is shared by as many trials or workers as fit. `storage` is a path or URI that every node
    reaches, for checkpoints; `data` is where nodes find what lies in data/ here, null: it travels to them.
    """

    address: Annotated[str, AfterValidator(addresses.ray_address)] = "local"
    cpus_per_trial: Cores | None = None
    gpus_per_trial: Gpus = 0
    workers: Annotated[WorkerRange, BeforeValidator(_as_range)] = WorkerRange(min=1, max=1)
    cpus_per_worker: Cores = 1
    gpus_per_worker: Gpus = 0
    storage: Annotated[str, AfterValidator(expanduser), AfterValidator(addresses.storage)] | None = None
    data: Annotated[str, AfterValidator(expanduser), AfterValidator(addresses.data)] | None = None

    @property
    def is_distributed(self) -> bool:
        """Whether training and evaluation run as tasks of the cluster, and not in this process."""
        return self.address != "local" or self.worker_range != (1, 1)

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the most workers of a training."""
        return self.workers.min, self.workers.max


class FeaturesSection(Section):
    """Where frozen features are kept between runs; no result depends on it.

    `cache`: `tune`, the search keeps them, which needs each many times, and training reads them; `always`, all stages
    keep them; `never`.
    """

    cache: Literal["tune", "always", "never"] = "tune"
    budget_gb: Annotated[PositiveFloat, Field(le=1_000_000)] = 20.0


RESERVED_ALIASES = ("challenger", "previous", "released", "latest")  # ours, and MLflow's latest, in any case


class RegistrySection(Section):
    """The alias that says what is live, and the bounds of the promotion gate (mmrl_core/evaluation/gate.py)."""

    alias: str = "champion"
    margin: Fraction = 0.0
    significance: Annotated[PositiveFloat, Field(lt=0.5)] = 0.05
    novel_loss: Fraction = 0.05
    latency: Annotated[PositiveFloat, Field(le=1_000_000)] = 2.0

    @field_validator("alias")
    @classmethod
    def _is_free(cls, alias: str) -> str:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,99}", alias):
            raise ValueError("an alias is a letter, then at most 99 letters, digits, _ and -")
        if alias.lower() in RESERVED_ALIASES:
            raise ValueError("the registry uses it itself; choose another")
        if re.fullmatch(r"[vV]\d+", alias):
            raise ValueError("MLflow reads it as a version's number; choose another")
        return alias


class ServingSection(Section):
    """`mmrl serve`. No result depends on it.

    `replicas`: processes that answer; of a range, as many as the requests keep busy. Images are scored in batches of
    what waits, up to `batch_size`; a smaller one waits up to `batch_wait_ms` where others are on their way. A question
    waits up to `queue_seconds` for the model, and has its answer within `request_seconds` of its head. `rate_limit` is
    of questions a second. Of an image, `max_bytes` counts the encoded and `max_pixels` the decoded size. The registry
    is asked every `poll_seconds` what the alias names. `log_share` of the predictions are written to .mmrl/predictions.
    Images named by a URL are fetched where it is below one of `url_prefixes`.
    """

    host: Annotated[str, AfterValidator(addresses.host)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, strict=True)] = 8000  # 0: any free one
    replicas: Annotated[WorkerRange, BeforeValidator(_as_range)] = WorkerRange(min=1, max=1)
    cpus_per_replica: Cores = 1
    batch_size: Workers = 16
    batch_wait_ms: Annotated[NonNegative, Field(le=60_000)] = 0
    queue_seconds: Annotated[PositiveFloat, Field(le=3600)] = 5
    request_seconds: Annotated[PositiveFloat, Field(le=3600)] = 60
    rate_limit: Annotated[PositiveFloat, Field(ge=0.001, le=1e6)] | None = None
    max_bytes: Annotated[PositiveInt, Field(le=2_000_000_000)] = 10_000_000
    max_pixels: Annotated[PositiveInt, Field(le=2_000_000_000)] = 50_000_000
    max_classes: Many = 1000
    url_prefixes: list[Annotated[str, AfterValidator(addresses.url_prefix)]] = []
    poll_seconds: Annotated[PositiveFloat, Field(ge=0.01, le=86_400)] = 5
    log_share: Fraction = 0


class TrackingSection(Section):
    uri: Annotated[str, AfterValidator(addresses.tracking_uri)] = "sqlite:///mlflow.db"


def _check_words(key: str, values: list[Any], known: tuple[str, ...]) -> None:
    """Every value is one of the known words, or where there are none a number."""
    for value in values:
        if known and value not in known:
            raise ValueError(f"{key}: {value!r} is none of {', '.join(known)}")
        if not known and isinstance(value, str):
            raise ValueError(f"{key}: a number is needed, not {value!r}")


def _check_dimension(key: str, distribution: Distribution) -> None:
    """A search dimension must be a known numeric key of `adapter` or `train`, with values that key accepts."""
    section, _, field = key.partition(".")
    sections: dict[str, type[Section]] = {"adapter": AdapterSection, "train": TrainSection}
    model = sections.get(section)
    if model is None or field not in model.model_fields or field in ("precision", "probe", "views"):
        raise ValueError(f"search.space names {key!r}, which is no key of adapter or train that is a number")
    if len(distribution) != 1 or next(iter(distribution)) not in ("choice", "uniform", "loguniform"):
        raise ValueError(f"{key} needs exactly one of choice, uniform, loguniform")
    kind, values = next(iter(distribution.items()))
    if kind != "choice" and field in (*WHOLE_NUMBERS, *WORDS):
        what = "words" if field in WORDS else "whole numbers"
        raise ValueError(f"{key} takes {what}: give a choice instead of {kind}")
    _check_words(key, values, get_args(Augmentation) if field in WORDS else ())
    ordered = kind == "choice" or (len(values) == 2 and values[0] < values[1])
    if not values or not ordered or (kind == "loguniform" and values[0] <= 0):
        raise ValueError(f"{key}: {kind} of {values} is no range; give [low, high] or a list of choices")
    for value in values:
        model.model_validate({field: value})
