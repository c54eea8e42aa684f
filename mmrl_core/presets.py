"""Published hyper-parameters, and how a run's settings are resolved: explicit value, search's choice, preset."""

from typing import Any, NamedTuple

from mmrl_core.config import AdapterConfig, Params, TrainConfig, parse
from mmrl_core.data.catalog import ALIASES
from mmrl_core.protocols import PROTOCOLS

PUBLISHED_DEPTH, PUBLISHED_LAYERS = 6, 12

# Regularisation weight (lambda) of MMRL; lambda and beta of MMRL++. Datasets without a published value get ImageNet's.
MMRL_REG_WEIGHT = {
    "imagenet": 0.5, "caltech101": 0.5, "oxford_pets": 0.2, "stanford_cars": 7, "oxford_flowers": 4, "food101": 5,
    "fgvc_aircraft": 6, "sun397": 6, "dtd": 6, "eurosat": 0.01, "ucf101": 3,
}  # fmt: skip
MMRLPP_REG_WEIGHT = {
    "imagenet": 0.2, "caltech101": 3, "oxford_pets": 0.01, "stanford_cars": 6, "oxford_flowers": 7, "food101": 1,
    "fgvc_aircraft": 2, "sun397": 3, "dtd": 7, "eurosat": 0.01, "ucf101": 3,
}  # fmt: skip
MMRLPP_BETA = {
    "imagenet": 0.9, "caltech101": 0.6, "oxford_pets": 0.7, "stanford_cars": 0.7, "oxford_flowers": 0.4, "food101": 0.1,
    "fgvc_aircraft": 0.9, "sun397": 0.5, "dtd": 0.9, "eurosat": 0.2, "ucf101": 0.9,
}  # fmt: skip


CROSS_DATASET_REG_WEIGHT = {"mmrl": 0.5, "mmrlpp": 0.1}  # the same for domain generalisation
CROSS_DATASET_BETA = 0.9
# Beta of MMRL++ at test time, by target: the published cross-dataset and domain-generalisation figures use these.
TARGET_BETA = {
    "imagenetv2": 0.9, "imagenet_r": 0.9, "imagenet_a": 0.8, "imagenet_sketch": 0.7, "fgvc_aircraft": 0.9,
    "ucf101": 0.9, "sun397": 0.7, "oxford_pets": 0.6, "caltech101": 0.6, "dtd": 0.5, "oxford_flowers": 0.4,
    "stanford_cars": 0.3, "eurosat": 0.3, "food101": 0.3,
}  # fmt: skip


class Resolved(NamedTuple):
    """Settings of one run, and for every key where its value came from."""

    adapter: AdapterConfig
    train: TrainConfig
    sources: dict[str, str]


def published(dataset: str, method: str, depth: int, protocol: str = "base-to-novel") -> dict[str, Any]:
    """The published values for a run, by params.yaml key; `depth` is N of the shallower tower."""
    dataset = ALIASES.get(dataset, dataset)
    reg_weight = MMRL_REG_WEIGHT if method == "mmrl" else MMRLPP_REG_WEIGHT
    transfers = PROTOCOLS[protocol].has_targets
    beta, weight = MMRLPP_BETA.get(dataset, MMRLPP_BETA["imagenet"]), reg_weight.get(dataset, reg_weight["imagenet"])
    return {
        "adapter.insertion_depth": max(1, depth * PUBLISHED_DEPTH // PUBLISHED_LAYERS),
        "adapter.n_tokens": 5,
        "adapter.rep_dim": 2048 if (method, dataset) == ("mmrl", "eurosat") else 512,
        "adapter.residual_rank": 4,
        "adapter.projection_rank": 64,
        "adapter.alpha": 0.7,
        "adapter.beta": CROSS_DATASET_BETA if transfers else beta,
        "adapter.reg_weight": CROSS_DATASET_REG_WEIGHT[method] if transfers else weight,
        **_schedule(dataset, method, protocol),
        "train.precision": "auto",
    }


def _schedule(dataset: str, method: str, protocol: str) -> dict[str, Any]:
    """The published batch size, epochs, learning rate and warm-up. The joint protocol trains as base-to-novel does."""
    if PROTOCOLS[protocol].has_targets:
        values = (32, 1, 1e-3, 0)
    elif dataset == "imagenet":
        values = (32, 5, 1e-3, 1)
    elif protocol == "few-shot":
        values = (32, 50, 1e-3, 1) if method == "mmrl" else (32, 100, 2e-3, 1)
    else:
        values = (4, 10, 1e-3, 1)
    return dict(zip(("train.batch_size", "train.epochs", "train.lr", "train.warmup_epochs"), values, strict=True))


def target_beta(params: Params, method: str, target: str) -> float | None:
    """The beta to test on `target` with, where the preset `published-per-target` has one; None: as in training.

    Tuned on the target itself by the authors. A beta in params.yaml wins.
    """
    if params.preset != "published-per-target" or method != "mmrlpp" or params.adapter.beta is not None:
        return None
    return TARGET_BETA.get(ALIASES.get(target, target))


def explicit_values(params: Params) -> dict[str, Any]:
    """The keys of `adapter` and `train` that params.yaml sets itself."""
    sections = {"adapter": params.adapter, "train": params.train}
    return {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in section.model_dump().items()
        if value is not None
    }


def resolve(
    params: Params, dataset: str, method: str, seed: int, depth: int, chosen: dict[str, Any] | None = None
) -> Resolved:
    """Settle every value of a run. `chosen` is the search's choice by key; `depth` N of the shallower tower."""
    layers = [
        (f"preset {params.preset}", published(dataset, method, depth, params.data.protocol)),
        ("search", chosen or {}),
        ("params.yaml", explicit_values(params)),
    ]
    values, sources = {}, {"adapter.method": "run key", "train.seed": "run key"}
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    section = {name: {} for name in ("adapter", "train")}
    for key, value in values.items():
        name, _, field = key.partition(".")
        section[name][field] = value
    adapter = parse(AdapterConfig, {"method": method, **section["adapter"]}, "adapter")
    return Resolved(adapter, parse(TrainConfig, {"seed": seed, **section["train"]}, "train"), sources)
