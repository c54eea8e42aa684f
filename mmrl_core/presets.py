"""Published hyper-parameters, by dataset, method and protocol."""

from typing import Any

from mmrl_core.data.catalog import ALIASES
from mmrl_core.data.embedded import MIRRORED_OTHERWISE
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


def tuned_per_dataset(dataset: str) -> dict[str, Any]:
    """The authors' values for one dataset: `reg_weight` by method, and `beta` of MMRL++; None where they name none."""
    weights = {"mmrl": MMRL_REG_WEIGHT.get(dataset), "mmrlpp": MMRLPP_REG_WEIGHT.get(dataset)}
    return {"reg_weight": weights, "beta": MMRLPP_BETA.get(dataset)}


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
        "train.views": "fast",
        "train.augmentation": "crop" if dataset.startswith(MIRRORED_OTHERWISE) else "crop+flip",
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
