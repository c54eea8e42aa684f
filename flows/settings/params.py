"""params.yaml: its whole schema, read and checked."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from flows.settings.dotted import section_of
from flows.settings.sections import (
    AdapterSection,
    BackboneSection,
    ClusterSection,
    DataSection,
    FeaturesSection,
    RegistrySection,
    SearchSection,
    ServingSection,
    TrackingSection,
    TrainSection,
)
from mmrl_core.config import Method, PositiveInt, Section, Seed, distinct, parse
from mmrl_core.errors import UserError


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


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not of the form key.path=value")
    try:
        section, name = section_of(values, key)
    except ValueError as error:
        raise UserError(f"--set {override!r}: {error}") from None
    try:
        section[name] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {override!r}: the value is not valid YAML") from None
