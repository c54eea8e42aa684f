"""The one schema of params.yaml, and the settings that a run resolves it to.

A null under `adapter` or `train` means "the search's choice, else the preset"; see presets.py. Unknown keys, wrong
types and impossible values raise UserError with one line.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from mmrl_core.errors import UserError
from mmrl_core.sections import (
    AdapterSection,
    BackboneSection,
    ClusterSection,
    DataSection,
    FeaturesSection,
    Fraction,
    Method,
    NonNegative,
    PositiveFloat,
    PositiveInt,
    Precision,
    RegistrySection,
    SearchSection,
    Section,
    Seed,
    ServingSection,
    TrackingSection,
    TrainSection,
    distinct,
)


class Params(Section):
    """params.yaml. The four lists are the axes of the run matrix."""

    datasets: Annotated[list[str], Field(min_length=1), AfterValidator(distinct)]
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(distinct)]
    shots: Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(distinct)]
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(distinct)]
    targets: Annotated[list[str], AfterValidator(distinct)] = []
    preset: Literal["published", "published-per-target"] = "published"
    data: DataSection = DataSection()
    backbone: BackboneSection = BackboneSection()
    adapter: AdapterSection = AdapterSection()
    train: TrainSection = TrainSection()
    search: SearchSection = SearchSection()
    features: FeaturesSection = FeaturesSection()
    cluster: ClusterSection = ClusterSection()
    registry: RegistrySection = RegistrySection()
    serving: ServingSection = ServingSection()
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
