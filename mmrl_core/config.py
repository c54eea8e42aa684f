"""The one schema of params.yaml, and the settings that a run resolves it to.

A null under `adapter` or `train` means "the search's choice, else the preset"; see presets.py. Unknown keys, wrong
types and impossible values raise UserError with one line.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mmrl_core.errors import UserError

Method = Literal["mmrl", "mmrlpp"]
Precision = Literal["auto", "float32", "bf16", "fp16"]


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("an entry occurs twice")
    return values


Number = Annotated[float, BeforeValidator(_no_boolean)]
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
PositiveFloat = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]


WHOLE_NUMBERS = ("insertion_depth", "n_tokens", "rep_dim", "residual_rank", "projection_rank",
                 "epochs", "batch_size", "warmup_epochs")  # fmt: skip


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class OwnSection(Section):
    """A dataset of the user's own: exactly one of `images`, `table`, `shards` says where it lies.

    Relative paths start at the working directory.
    """

    images: str | None = None  # a folder of class folders; also what the paths of `table` are relative to
    table: str | None = None  # a CSV or Parquet file with the columns path, label and, if wanted, split
    shards: str | None = None  # a folder of WebDataset .tar files, or a pattern of such files
    classes: str | None = None  # a CSV with the columns class and name: readable names
    template: str = "a photo of a {}."
    base_classes: list[str] | None = None  # names; the others are novel
    val_share: Fraction = 0.2  # of a class's images, where the data names no split
    test_share: Fraction = 0.3
    split_seed: Seed = 0

    @field_validator("template")
    @classmethod
    def _names_the_class(cls, template: str) -> str:
        if "{}" not in template:
            raise ValueError("it needs {} where the class name goes")
        return template

    @model_validator(mode="after")
    def _one_place(self) -> "OwnSection":
        if (self.shards and (self.images or self.table)) or not (self.shards or self.images or self.table):
            raise ValueError("name images (a folder), table (CSV or Parquet) or shards (tar files)")
        if not 0 < self.test_share < 1 or self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share must leave something to train on, and test_share be above 0")
        return self


class DataSection(Section):
    root: str = "data/raw"
    protocol: Literal["base-to-novel", "few-shot", "cross-dataset", "domain-generalization", "joint"] = "base-to-novel"
    base_classes: PositiveInt | None = None
    own: dict[str, OwnSection] = {}

    @field_validator("own")
    @classmethod
    def _plain_names(cls, own: dict) -> dict:
        for name in own:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(f"the name {name!r} must be of letters, digits, _ and - (it names folders)")
        return own


class BackboneSection(Section):
    name: str = "tiny"
    weights: str | None = None


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
    enabled: bool = True
    trials: PositiveInt = 8
    concurrent: PositiveInt = 1
    space: dict[str, dict[str, list[int | float]]] = {}
    objective: Literal["log_likelihood", "harmonic_mean"] = "log_likelihood"
    validation: Literal["few_shot", "full"] = "few_shot"
    partitions: PositiveInt = 2
    seed: Seed = 0

    @field_validator("space")
    @classmethod
    def _known_dimensions(cls, space: dict) -> dict:
        for key, distribution in space.items():
            _check_dimension(key, distribution)
        return space


class ClusterSection(Section):
    """Trials of the search run side by side on every core; training and evaluation run in one process."""

    address: str = "local"
    workers: Literal[1] = 1
    gpus_per_worker: NonNegative = 0
    storage: None = None


class FeaturesSection(Section):
    """Where frozen features are kept between runs; no result depends on it.

    `cache`: `tune`, only the search keeps them, which needs each many times; `always`, training and evaluation too;
    `never`.
    """

    cache: Literal["tune", "always", "never"] = "tune"
    budget_gb: PositiveFloat = 20.0


class RegistrySection(Section):
    alias: str = "champion"


class TrackingSection(Section):
    uri: str = "sqlite:///mlflow.db"


class Params(Section):
    """params.yaml. The four lists are the axes of the run matrix."""

    datasets: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(_distinct)]
    shots: Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(_distinct)]
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
    targets: Annotated[list[str], AfterValidator(_distinct)] = []
    preset: Literal["published", "published-per-target"] = "published"
    data: DataSection = DataSection()
    backbone: BackboneSection = BackboneSection()
    adapter: AdapterSection = AdapterSection()
    train: TrainSection = TrainSection()
    search: SearchSection = SearchSection()
    features: FeaturesSection = FeaturesSection()
    cluster: ClusterSection = ClusterSection()
    registry: RegistrySection = RegistrySection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _targets_fit_the_protocol(self) -> "Params":
        needs = self.data.protocol in ("cross-dataset", "domain-generalization")
        if needs and not self.targets:
            raise ValueError(f"data.protocol is {self.data.protocol}: name the datasets to test on in targets")
        if self.targets and not needs:
            raise ValueError(f"data.protocol is {self.data.protocol}, which has no targets; set targets: []")
        if both := [name for name in self.targets if name in self.datasets]:
            raise ValueError(f"{both[0]} is both in datasets and in targets; it is tested on itself anyway")
        return self


class AdapterConfig(Section):
    """A resolved adapter. Defaults are the published ones for a CLIP with 12-layer towers."""

    method: Method
    insertion_depth: PositiveInt = 6
    n_tokens: PositiveInt = 5
    rep_dim: PositiveInt = 512
    residual_rank: PositiveInt = 4
    projection_rank: PositiveInt = 64
    alpha: Fraction = 0.7
    beta: Fraction = 0.9
    reg_weight: NonNegative = 0.5

    @property
    def composition(self) -> float:
        """Share of the fresh tokens in a layer's slots: MMRL replaces them (1), MMRL++ mixes them in (beta)."""
        return self.beta if self.method == "mmrlpp" else 1.0


class TrainConfig(Section):
    """Resolved optimisation settings; `seed` governs initialisation, order and augmentation."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 4
    lr: PositiveFloat = 1e-3
    warmup_epochs: int = 1
    precision: Precision = "float32"
    seed: Seed = 1

    @model_validator(mode="after")
    def _warm_up_fits(self) -> "TrainConfig":
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, more than the {self.epochs} epochs")
        return self


def load_params(path: str | Path = "params.yaml", overrides: Iterable[str] = ()) -> Params:
    """Read, override (`key.path=value`, YAML values) and validate. Raises UserError."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name the settings with --params FILE") from None
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: no UTF-8, or a date that is none
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; it must be a mapping with datasets, methods, shots and seeds")
    for override in overrides:
        _apply(values, override)
    return parse(Params, values, str(path))


def parse(model: type[Section], values: dict[str, Any], where: str):
    """Validate `values` as `model`, turning the first violation into a UserError that names the key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(model, error)}") from None


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not of the form key.path=value")
    *path, last = key.split(".")
    for name in path:
        values = values.setdefault(name, {}) if isinstance(values, dict) else None
        if not isinstance(values, dict):
            raise UserError(f"--set {override!r}: {name!r} is not a section of the settings")
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {override!r}: the value is not valid YAML") from None


def _first_problem(model: type[Section], error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "invalid_key":
        return f"the key {key!r} is not a word; write it as one"
    if not key:
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_suggestion(model, problem['loc'])}"
    if problem["type"] == "missing":
        return f"{key} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} is {problem['input']!r}, which cannot be: {message[0].lower()}{message[1:]}"


def _suggestion(model: type[BaseModel], loc: tuple) -> str:
    for name in loc[:-1]:
        model = model.model_fields[name].annotation if isinstance(model, type) else get_args(model)[1]
    near = difflib.get_close_matches(str(loc[-1]), model.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(model.model_fields)}"


def _check_dimension(key: str, distribution: dict[str, list[int | float]]) -> None:
    """A search dimension must be a known numeric key of `adapter` or `train`, with values that key accepts."""
    section, _, field = key.partition(".")
    model = {"adapter": AdapterSection, "train": TrainSection}.get(section)
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
