"""The search's data, and how it is divided: base classes into seen and unseen, several times for every seed."""

import random
from itertools import product
from typing import NamedTuple

from mmrl_core.data.shards import Example
from mmrl_core.errors import UserError

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
    digests: dict[str, str] = {}  # sha256 of the encoded images, by path


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
    known = {tuple(part.seen) for part in used}
    by_seed: list[dict[tuple[int, ...], Partition]] = [{} for _ in data.seeds]
    for part in partitions(data, DRAWS * count, search_seed):
        unused = by_seed[part.place]
        if tuple(part.seen) not in known and len(unused) < count:
            unused.setdefault(tuple(part.seen), part)
    fresh = [part for unused in by_seed for part in unused.values()]
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
