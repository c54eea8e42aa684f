"""The search's objective, on labelled items of the base classes alone.

The base classes are divided at random into seen and unseen, several times for every sampling seed. A trial trains on
the few-shot items of the seen ones; validation items of the seen ones are scored with the fused logits, all items of
the unseen ones with the class logits, each among their own kind: the base-to-novel protocol in small, without a novel
class or a test image.
"""

import random
import time
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from mmrl_core.backbone import Backbone
from mmrl_core.data.features import FeatureStore
from mmrl_core.data.sets import image_set
from mmrl_core.data.shards import Example
from mmrl_core.errors import UserError
from mmrl_core.evaluation import score, summary
from mmrl_core.model import AdaptedCLIP
from mmrl_core.presets import Resolved
from mmrl_core.protocols import harmonic_mean
from mmrl_core.training import fit

DRAWS = 20  # for every fresh division that is wanted


class SearchData(NamedTuple):
    """The base classes' labelled items, one pair of lists a sampling seed."""

    class_names: list[str]  # by source label
    template: str
    base: list[int]  # source labels
    seeds: list[int]
    train: list[list[Example]]
    val: list[list[Example]]
    new_classes: bool = True  # whether the protocol asks for classes that training never saw


class Partition(NamedTuple):
    """One division of the base classes, for the items of one sampling seed."""

    place: int  # of the seed in SearchData.seeds
    seen: list[int]
    unseen: list[int]


def partitions(data: SearchData, count: int, search_seed: int) -> list[Partition]:
    """`count` divisions for every sampling seed, each its own, the same for every trial; all seeds come by turns.

    Where the protocol asks for no new class nothing is divided: each seed comes once, with every class seen. Raises
    UserError when there is but one base class to divide.
    """
    if not data.new_classes:
        return [Partition(place, data.base, []) for place in range(len(data.seeds))]
    turns = product(range(count), range(len(data.seeds)))
    return [Partition(place, *_divide(data.base, f"{search_seed}/{turn}/{place}")) for turn, place in turns]


def fresh_partitions(data: SearchData, count: int, search_seed: int, used: list[Partition]) -> list[Partition]:
    """Up to `count` divisions for every sampling seed that divide the classes otherwise than all of `used`, each once.

    Of few classes there are fewer; raises UserError where there is none. Where no class is new nothing is divided.
    """
    if not data.new_classes:
        return partitions(data, count, search_seed)
    known, found = {tuple(one.seen) for one in used}, {place: {} for place in range(len(data.seeds))}
    for one in partitions(data, DRAWS * count, search_seed):
        mine = found[one.place]
        if tuple(one.seen) not in known and len(mine) < count:
            mine.setdefault(tuple(one.seen), one)
    fresh = [one for mine in found.values() for one in mine.values()]
    if not fresh:
        raise UserError("the search used every division of so few classes: there is none left to confirm its choice on")
    return fresh


def _divide(labels: list[int], key: str) -> tuple[list[int], list[int]]:
    """Seen and unseen labels, each sorted; the larger half is seen."""
    if len(labels) < 2:
        raise UserError("the search divides the base classes and needs 2 or more; set search.enabled: false")
    shuffled = random.Random(f"partition {key}").sample(labels, len(labels))
    cut = -(-len(labels) // 2)
    return sorted(shuffled[:cut]), sorted(shuffled[cut:])


def partition_scores(
    backbone: Backbone, settings: Resolved, data: SearchData, partition: Partition, store: FeatureStore | None = None
) -> dict[str, Any]:
    """Train on the seen classes and score both kinds; `store` keeps the frozen features that other trials want too.

    `log_likelihood` is balanced: the mean of the two kinds' mean log-probabilities of the truth, in nats an image.
    `losses` holds the training loss of every epoch, `step_time` is in seconds.
    """
    place, seen, _ = partition
    train = settings.train.model_copy(update={"seed": data.seeds[place]})
    items = image_set(data.train[place], seen, data.class_names, data.template)
    start = time.perf_counter()
    adapter, history, _ = fit(backbone, settings.adapter, train, items, store=store)
    steps = train.epochs * max(1, len(items.items) // train.batch_size)
    cost = {"step_time": (time.perf_counter() - start) / steps, "trainable_parameters": adapter.n_trainable}
    summarise = partial(_summarise, backbone, adapter, data, store)
    scores = _both_kinds(summarise, data, partition)
    return {**scores, **cost, "losses": [metrics["loss"] for metrics in history]}


def _both_kinds(summarise, data: SearchData, partition: Partition) -> dict[str, float]:
    place, seen, unseen = partition
    by_seen = summarise(data.val[place], seen, trained=seen)
    if not unseen:
        # One kind: it is its own balance and its own mean.
        return {"log_likelihood": -by_seen["nll"], "harmonic_mean": by_seen["accuracy"]}
    by_unseen = summarise(data.train[place] + data.val[place], unseen, trained=())
    return {
        "log_likelihood": -(by_seen["nll"] + by_unseen["nll"]) / 2,
        "harmonic_mean": harmonic_mean(by_seen["accuracy"], by_unseen["accuracy"]),
        "seen_accuracy": by_seen["accuracy"],
        "unseen_accuracy": by_unseen["accuracy"],
    }


def _summarise(backbone, adapter, data: SearchData, store, examples: list[Example], labels, trained) -> dict:
    mine = [example for example in examples if example.label in labels]
    if not mine:
        raise UserError(
            "the search has no validation image; prepare data with a val split or set search.enabled: false"
        )
    model = AdaptedCLIP(backbone, adapter, [data.class_names[label] for label in labels], data.template)
    scores = score(model, mine, labels, trained, store=store)
    return summary(scores.adapted, scores.labels)
