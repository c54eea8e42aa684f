"""params.yaml: its whole schema, read and checked."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from flows.settings.dotted import section_of
from flows.settings.reading import read_text, read_value, read_yaml
from flows.settings.sections import (
    AdapterSection,
    BackboneSection,
    ClusterSection,
    DataSection,
    DatasetName,
    FeaturesSection,
    Many,
    RegistrySection,
    SearchSection,
    ServingSection,
    TrackingSection,
    TrainSection,
)
from flows.settings.template import DEFAULT_PARAMS, template
from mmrl_core.config import Method, Section, Seed, distinct, parse, short
from mmrl_core.errors import UserError
from mmrl_core.protocols import BaselineMethod


class Params(Section):
    """params.yaml. The four lists are the axes of the run matrix."""

    datasets: Annotated[list[DatasetName], Field(min_length=1), AfterValidator(distinct)]
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(distinct)]
    baselines: Annotated[list[BaselineMethod], AfterValidator(distinct)] = []
    shots: Annotated[list[Many], Field(min_length=1), AfterValidator(distinct)]
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(distinct)]
    targets: Annotated[list[DatasetName], AfterValidator(distinct)] = []
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
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

    @property
    def kinds(self) -> list[str]:
        """Methods and baselines: what a run key's `method` may be."""
        return [*self.methods, *self.baselines]

    @model_validator(mode="after")
    def _names_are_apart(self) -> "Params":
        """No two datasets, and no two pairs of dataset and target, share what DVC's items or folders are called, on
        whatever file system."""
        _check_apart([((name,), name) for name in dict.fromkeys([*self.datasets, *self.targets])])
        pairs = [(dataset, target) for dataset in self.datasets for target in self.targets]
        _check_apart([(pair, "-".join(pair)) for pair in pairs])
        _check_apart([(pair, "-to-".join(pair)) for pair in [*pairs, *((name, name) for name in self.datasets)]])
        return self

    @model_validator(mode="after")
    def _data_is_not_written_into(self) -> "Params":
        """What is read lies nowhere that `mmrl prepare` writes to, which is data/<name>."""
        for name in [*self.datasets, *self.targets]:
            shards = Path("data", name).absolute()
            if shards == Path(self.data.root).absolute():
                raise ValueError(
                    f"data.root is data/{name}, where the shards of {name} are written; choose another folder"
                )
            own = self.data.own.get(name)
            images = own and not own.table and own.images
            if images and shards.is_relative_to(Path(images).absolute()):
                raise ValueError(
                    f"data.own.{name}.images is {images}, and its shards are written to data/{name}; move the images"
                )
        return self

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


def _check_apart(named: Iterable[tuple[tuple[str, ...], str]]) -> None:
    """Raises ValueError where two have one name; case does not tell them apart."""
    known: dict[str, tuple[str, ...]] = {}
    for one, name in named:
        other = known.setdefault(name.lower(), one)
        if other != one:
            both = " and ".join(" on ".join(datasets) for datasets in (other, one))
            raise ValueError(f"{both} would share the files and items called {name!r}; rename one of the datasets")


def load_params(path: str | Path = DEFAULT_PARAMS, overrides: Iterable[str] = ()) -> Params:
    """Read, override (`key.path=value`, YAML values) and validate. Raises UserError."""
    return checked(read_text(path), path, overrides)


def params_or_shipped(path: Path, overrides: Iterable[str] = ()) -> Params:
    """The same, for what needs no project: where there is no params.yaml, those that this package ships."""
    if path != DEFAULT_PARAMS or path.exists():
        return load_params(path, overrides)
    return checked(template("params.yaml").decode(), path, overrides)


def checked(text: str, path: str | Path, overrides: Iterable[str] = ()) -> Params:
    """The settings that a file of this text and these overrides hold. Raises UserError that names `path`."""
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; it must be a mapping with datasets, methods, shots and seeds")
    for key, value in parse_overrides(overrides):
        try:
            section, name = section_of(values, key)
        except ValueError as error:
            raise UserError(f"--set {short(key)}: {error}") from None
        section[name] = value
    return parse(Params, values, str(path))


def parse_overrides(overrides: Iterable[str]) -> list[tuple[str, Any]]:
    """Of every `key.path=value` the dotted key and the value. Raises UserError."""
    return [_parse_override(override) for override in overrides]


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {short(override)} is not of the form key.path=value")
    return key, read_value(text, f"--set {short(override)}")
