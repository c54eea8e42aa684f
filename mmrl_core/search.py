"""The search objective: how well settings learn seen classes without losing unseen ones, on base classes alone.

The base classes are divided at random into seen and unseen. A trial trains on the few-shot items of the seen ones; the
seen ones' validation items are scored with the fused logits, all items of the unseen ones with the class logits, each
among their own kind: the base-to-novel protocol in small, without a novel class or a test image.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from mmrl_core.backbone import Backbone
from mmrl_core.data.sets import image_set
from mmrl_core.data.shards import Example
from mmrl_core.errors import UserError
from mmrl_core.evaluation import score, summary
from mmrl_core.model import AdaptedCLIP
from mmrl_core.presets import Resolved
from mmrl_core.protocols import harmonic_mean
from mmrl_core.training import fit


class SearchData(NamedTuple):
    """The base classes' few-shot items, one pair of lists a sampling seed."""

    class_names: list[str]  # by source label
    template: str
    base: list[int]  # source labels
    seeds: list[int]
    train: list[list[Example]]
    val: list[list[Example]]


def divide(labels: list[int], seed: int) -> tuple[list[int], list[int]]:
    """Seen and unseen labels, each sorted; the larger half is seen."""
    if len(labels) < 2:
        raise UserError("the search divides the base classes and needs 2 or more; set search.enabled: false")
    shuffled = random.Random(f"partition {seed}").sample(labels, len(labels))
    cut = -(-len(labels) // 2)
    return sorted(shuffled[:cut]), sorted(shuffled[cut:])


def trial_scores(backbone: Backbone, settings: Resolved, data: SearchData, search_seed: int) -> Iterator[dict]:
    """One result a sampling seed, each on a partition of its own, the same for every trial."""
    for index, seed in enumerate(data.seeds):
        seen, unseen = divide(data.base, search_seed + index)
        train = settings.train.model_copy(update={"seed": seed})
        yield _score_partition(backbone, settings.adapter, train, data, index, seen, unseen)


def _score_partition(backbone, config, train, data: SearchData, index: int, seen: list[int], unseen: list[int]) -> dict:
    items = image_set(data.train[index], seen, data.class_names, data.template)
    adapter = fit(backbone, config, train, items).adapter
    held_out = [example for example in data.val[index] if example.label in seen]
    never_seen = [example for example in data.train[index] + data.val[index] if example.label in unseen]
    by_seen = _summarise(backbone, adapter, data, held_out, seen, "fused")
    by_unseen = _summarise(backbone, adapter, data, never_seen, unseen, "class")
    return {
        "log_likelihood": -(by_seen["nll"] + by_unseen["nll"]) / 2,
        "harmonic_mean": harmonic_mean(by_seen["accuracy"], by_unseen["accuracy"]),
        "seen_accuracy": by_seen["accuracy"],
        "unseen_accuracy": by_unseen["accuracy"],
    }


def _summarise(backbone, adapter, data: SearchData, examples: list[Example], labels: list[int], logits: str) -> dict:
    if not examples:
        raise UserError(
            "the search has no validation image; prepare data with a val split or set search.enabled: false"
        )
    model = AdaptedCLIP(backbone, adapter, [data.class_names[label] for label in labels], data.template)
    scores = score(model, examples, labels, logits)
    return summary(scores.adapted, scores.labels)


def running_mean(results: list[dict]) -> dict[str, float]:
    """Mean of every score over the partitions so far."""
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}
