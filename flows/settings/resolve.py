"""What a run resolves its settings to: explicit value, search's choice, preset."""

from typing import Any

from flows.settings.dotted import flatten, unflatten
from flows.settings.params import Params
from mmrl_core.config import AdapterConfig, Resolved, TrainConfig, parse
from mmrl_core.data.catalog import ALIASES, photograph_note
from mmrl_core.presets import TARGET_BETA, published


def target_beta(params: Params, method: str, target: str) -> float | None:
    """The beta to test on `target` with, where the preset `published-per-target` has one; None: as in training.

    Tuned on the target itself by the authors. A beta in params.yaml wins.
    """
    if params.preset != "published-per-target" or method != "mmrlpp" or params.adapter.beta is not None:
        return None
    return TARGET_BETA.get(ALIASES.get(target, target))


def photograph_notes(params: Params) -> list[str]:
    """A line, if any, that names the datasets and targets whose photographs the settings' backbone does not know."""
    keys = dict.fromkeys([*params.datasets, *params.targets])
    notes = {key: photograph_note(key, params.backbone.name) for key in keys}
    unknown = [key for key in keys if notes[key]]
    return [f"{', '.join(unknown)}: {notes[unknown[0]]}"] if unknown else []


def explicit_values(params: Params) -> dict[str, Any]:
    """The keys of `adapter` and `train` that params.yaml sets itself."""
    values = flatten({"adapter": params.adapter.model_dump(), "train": params.train.model_dump()})
    return {key: value for key, value in values.items() if value is not None}


def unflipped(params: Params, dataset: str) -> dict[str, Any]:
    """The augmentation of the user's own data whose images must not be mirrored, by its key; nothing of others."""
    own = params.data.own.get(dataset)
    return {"train.augmentation": "crop"} if own and not own.flips else {}


def resolve(
    params: Params, dataset: str, method: str, seed: int, depth: int, chosen: dict[str, Any] | None = None
) -> Resolved:
    """Settle every value of a run. `chosen` is the search's choice by key; `depth` N of the shallower tower."""
    layers = [
        (f"preset {params.preset}", published(dataset, method, depth, params.data.protocol)),
        (f"data.own.{dataset}.flips", unflipped(params, dataset)),
        ("search", chosen or {}),
        ("params.yaml", explicit_values(params)),
    ]
    values: dict[str, Any] = {}
    sources = {"adapter.method": "run key", "train.seed": "run key"}
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    sections = unflatten(values)
    adapter = parse(AdapterConfig, {"method": method, **sections["adapter"]}, "adapter")
    return Resolved(adapter, parse(TrainConfig, {"seed": seed, **sections["train"]}, "train"), sources)


def settings_by_key(settings: Resolved) -> dict[str, Any]:
    """Every value of a run by params.yaml key, as its adapter.json holds them."""
    return flatten({"adapter": settings.adapter.model_dump(), "train": settings.train.model_dump()})


def settings_from_keys(values: dict[str, Any]) -> tuple[AdapterConfig, TrainConfig]:
    """The settings that an adapter.json holds. Raises UserError where this release does not know one of them."""
    sections = unflatten(values)
    return parse(AdapterConfig, sections["adapter"], "the card"), parse(TrainConfig, sections["train"], "the card")
