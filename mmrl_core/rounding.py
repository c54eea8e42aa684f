"""Which figures count as equal, so that no choice hangs on how a machine rounds."""

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

DIGITS = 9  # of a figure that has a say in a choice or a name
ROUNDED = 10**-DIGITS  # by which figures of the order of 1 may differ for rounding alone
# Scores of adapters that were trained from the same settings and data: on a CPU without a vector unit mean
# log-likelihoods of adapters of `digits` came out otherwise by up to 0.0013 for one training; a search compares means.
SCORE = 1e-3

T = TypeVar("T")


def at_most(value: float, bound: float) -> bool:
    """Whether `value` is no larger than `bound` but for rounding."""
    return value <= bound or math.isclose(value, bound, rel_tol=ROUNDED)


def first_of_best(items: Iterable[T], score: Callable[[T], float], within: float = SCORE) -> T:
    """The first of the items whose score is within `within` of the highest. Raises ValueError without an item."""
    items = list(items)
    best = max(map(score, items))
    return next((item for item in items if at_most(best, score(item) + within)), items[0])  # none: not a number
