"""The settings of a run as types: what the library takes and params.yaml is made of.

Unknown keys, wrong types and impossible values raise UserError with one line.
"""

import difflib
import re
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mmrl_core.errors import UserError
from mmrl_core.files import local_path
from mmrl_core.protocols import BaselineMethod

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Method = Literal["mmrl", "mmrlpp"]
Probe = Literal["off", "fused"]  # a linear probe's say in the logits of trained classes
Precision = Literal["auto", "float32", "bf16", "fp16"]

Views = Literal["fast", "pillow"]  # what scales training views
Augmentation = Literal["none", "crop", "crop+flip", "crop+flip+colour"]


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def no_boolean_off(value: Any) -> Any:
    """`off`, which YAML 1.1 reads as false."""
    return "off" if value is False else value


def _no_negative_zero(value: float) -> float:
    """The number; -0.0 as 0.0, so that equal settings have the same digest."""
    return value + 0.0


T = TypeVar("T")


def distinct(values: list[T]) -> list[T]:
    """The values. Raises ValueError when one occurs twice."""
    if len(set(values)) < len(values):
        raise ValueError("an entry occurs twice")
    return values


Number = Annotated[float, BeforeValidator(_no_boolean), AfterValidator(_no_negative_zero)]
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


class WrongSetting(UserError, ValueError):
    """A setting that is given in Python and cannot be."""


class ByHand(Section):
    """Settings that programs make as well: `TrainConfig(epochs=0)` raises WrongSetting with one line."""

    if not TYPE_CHECKING:  # checkers know the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise WrongSetting(_first_problem(type(self), error)) from None


class AdapterConfig(ByHand):
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
    probe: Annotated[Probe, BeforeValidator(no_boolean_off)] = "off"

    @property
    def composition(self) -> float:
        """Share of the fresh tokens in a layer's slots: MMRL replaces them (1), MMRL++ mixes them in (beta)."""
        return self.beta if self.method == "mmrlpp" else 1.0


class BaselineConfig(ByHand):
    """A resolved baseline. It has no setting of its own: what it chooses by validation is its head's."""

    method: BaselineMethod
    composition: ClassVar[float] = 1.0


class TrainConfig(ByHand):
    """Resolved optimisation settings; `seed` governs initialisation, order and augmentation."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 4
    lr: PositiveFloat = 1e-3
    warmup_epochs: int = 1
    precision: Precision = "float32"
    views: Views = "fast"
    augmentation: Augmentation = "crop+flip"
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
    problem = error.errors(include_url=False)[0]
    key, message = ".".join(str(part) for part in problem["loc"]), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "invalid_key":
        return f"the key {key!r} is not a word; write it as one"
    if problem["loc"][-1:] == ("[key]",):
        return f"the key {short(problem['input'])} in {'.'.join(map(str, problem['loc'][:-2]))} is no text; quote it"
    if not key:
        return message
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_suggestion(model, problem['loc'])}"
    if problem["type"] == "missing":
        return f"{key} is missing; add it"
    return f"{key} is {short(problem['input'])}, which cannot be: {_expected(model, problem, key, message)}"


def short(value: Any) -> str:
    """A value for a message: as settings spell it, no password of a URI, at most about a hundred characters."""
    named = next((name for name, one in (("null", None), ("true", True), ("false", False)) if value is one), None)
    text = re.sub(r"://.*@", "://***@", named or repr(value))
    text = re.sub(r"((?:password|passwd|pwd|token|secret)\w*=)[^&'\"\s]+", r"\1***", text, flags=re.IGNORECASE)
    return text if len(text) <= 100 else f"{text[:70]} ... {text[-20:]}"


def _expected(model: type[Section], problem: "ErrorDetails", key: str, message: str) -> str:
    """What a value of the wrong kind or size should have been."""
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "literal_error":
        choices = get_args(_type_at(model, problem["loc"]))
        return f"choose one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
    if kind == "list_type":
        return "a list is needed" + (f"; say [{value}]" if isinstance(value, str | int | float) else "")
    if kind in ("model_type", "model_attributes_type"):
        return _section_needed(_type_at(model, problem["loc"]), value, key)
    if kind == "string_type" and value is not None and not isinstance(value, list | dict):
        return "text is needed; quote it"
    return _EXPECTED[kind].format(**context) if kind in _EXPECTED else message


_WHOLE, _NUMBER = "a whole number is needed", "a number is needed"
_EXPECTED = {
    "string_type": "text is needed",
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is needed"),
    "dict_type": "it is a section of names, as {{NAME: ...}}",
    "greater_than": "more than {gt:g} is needed",
    "greater_than_equal": "at least {ge} is needed",
    "less_than": "less than {lt:,} is needed",
    "less_than_equal": "at most {le:,} is possible",
    "too_short": "at least one is needed",
    "string_too_short": "it is empty",
    "string_too_long": "at most {max_length} characters are possible",
}


def _section_needed(section: type[Section], value: Any, key: str) -> str:
    first, field = next(iter(section.model_fields.items()))
    of_text = str in {getattr(one, "__origin__", one) for one in (field.annotation, *get_args(field.annotation))}
    if isinstance(value, str) and of_text:
        return f"it is a section; say {key}.{first}={value if len(value) <= 100 else '...'}"
    return f"it is a section; its keys are {', '.join(section.model_fields)}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` with the choice that is nearest to the word, "" where none is."""
    near = nearest(word, choices)
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is spelled most like the word, in whatever case and however its parts are joined; or None."""
    plain = {_plain(choice): choice for choice in choices}
    near = difflib.get_close_matches(_plain(word), plain, n=1)
    return plain[near[0]] if near else None


def _plain(word: str) -> str:
    """MMRL++ as mmrlpp, few-shot as fewshot."""
    return re.sub(r"[-_\s]", "", word[:100].lower().replace("+", "p"))


def _suggestion(model: type[Section], loc: tuple[int | str, ...]) -> str:
    parent, name = _type_at(model, loc[:-1]), str(loc[-1])
    near = difflib.get_close_matches(name, parent.model_fields, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    if elsewhere := [key for key in _dotted_keys(model) if key.endswith(f".{name}")]:
        return f"; did you mean {elsewhere[0]!r}?"
    return f"; known here: {', '.join(parent.model_fields)}"


def _type_at(model: Any, loc: Iterable[int | str]) -> Any:
    """The type of the value that is at `loc` in a model: a section, a Literal, dict[...], list[...] or a plain one."""
    for part in loc:
        within = get_args(model)  # dict[str, ...]: a name in it is the user's own
        model = _bare(within[-1] if within else model.model_fields[part].annotation)
    return model


def _bare(annotation: Any) -> Any:
    """A type without None beside it and what Annotated says of it."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _bare(next(one for one in get_args(annotation) if one is not NoneType))
    return annotation


def _dotted_keys(model: type[Section]) -> list[str]:
    """Every key of a model's sections, as section.key."""
    sections = {name: _bare(field.annotation) for name, field in model.model_fields.items()}
    return [f"{name}.{key}" for name, one in sections.items() for key in getattr(one, "model_fields", {})]
