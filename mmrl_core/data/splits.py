"""Few-shot sampling, and the base and novel halves of the classes: the CoOp protocol (method.md, "Data protocol")."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmrl_core.errors import UserError

VAL_SHOTS = 4  # at most this many validation items a class, whatever the shots


class Item(NamedTuple):
    """One image of a split: its path below the images folder, its label and that label's class name."""

    path: str
    label: int
    class_name: str


def sample_few_shot(
    items: Sequence, shots: int, seed: int, val_items: Sequence | None = None
) -> tuple[list[int], list[int]]:
    """Train and val indices, in sampling order: `shots` items a class and min(shots, 4) val items a class.

    Items are `Item`s or [path, label, class name] rows. A class with fewer items gives all of them. Raises UserError
    when shots < 1. The published index files come from exactly this order of draws.
    """
    if shots < 1:
        raise UserError(f"shots is {shots}; give 1 or more training images a class")
    rng = random.Random(seed)
    train = _sample_each_class(items, shots, rng)
    return train, _sample_each_class(val_items or [], min(shots, VAL_SHOTS), rng)


def _sample_each_class(items: Sequence, shots: int, rng: random.Random) -> list[int]:
    indices_of = defaultdict(list)  # label -> item indices; labels in order of first appearance
    for index, item in enumerate(items):
        indices_of[item[1]].append(index)
    chosen = []
    for indices in indices_of.values():
        # A short class is taken whole and draws nothing, or every later class would be another one.
        chosen += rng.sample(indices, shots) if len(indices) >= shots else indices
    return chosen


def base_novel(labels: Iterable[int], n_base: int | None = None) -> tuple[list[int], list[int]]:
    """The distinct labels, sorted and cut in two: the first `n_base` (by default ceil(n / 2)) are base, the rest novel.

    Raises UserError when no class would be left for either side.
    """
    ordered = sorted(set(labels))
    half = -(-len(ordered) // 2) if n_base is None else n_base
    if n_base is not None and not 0 < n_base < len(ordered):
        raise UserError(f"data.base_classes is {n_base} of {len(ordered)} classes; choose 1 to {len(ordered) - 1}")
    return ordered[:half], ordered[half:]
