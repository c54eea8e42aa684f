"""The settings of a run as types: what the library takes and params.yaml is made of.

Unknown keys, wrong types and impossible values raise UserError with one line.
"""

import difflib
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mmrl_core.errors import UserError
from mmrl_core.files import local_path

Method = Literal["mmrl", "mmrlpp"]
Precision = Literal["auto", "float32", "bf16", "fp16"]


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


T = TypeVar("T")


def distinct(values: list[T]) -> list[T]:
    """The values. Raises ValueError when one occurs twice."""
    if len(set(values)) < len(values):
        raise ValueError("an entry occurs twice")
    return values


Number = Annotated[float, BeforeValidator(_no_boolean)]
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
TokenCount = Annotated[int, Field(ge=1, le=1000, strict=True)]  # attention's memory goes with the square
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
PositiveFloat = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
LocalPath = Annotated[str, AfterValidator(local_path)]


class Section(BaseModel):
    """Settings that cannot be changed; an unknown key is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Section)


class AdapterConfig(Section):
    """A resolved adapter. Defaults are the published ones for a CLIP with 12-layer towers."""

    method: Method
    insertion_depth: PositiveInt = 6
    n_tokens: TokenCount = 5
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


class Resolved(NamedTuple):
    """Settings of one run, and for every key where its value came from."""

    adapter: AdapterConfig
    train: TrainConfig
    sources: dict[str, str]


def parse(model: type[S], values: dict[str, Any], where: str) -> S:
    """Validate `values` as `model`, turning the first violation into a UserError that names the key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(model, error)}") from None


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


def _suggestion(model: Any, loc: tuple[int | str, ...]) -> str:
    for name in loc[:-1]:
        of_dictionary = get_args(model)  # dict[str, Model]: a name in it is the user's own
        model = of_dictionary[1] if of_dictionary else model.model_fields[name].annotation
    near = difflib.get_close_matches(str(loc[-1]), model.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(model.model_fields)}"
