"""Probabilities by class name, and the largest of them.

B images, C classes, N names: classes may share one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Names(NamedTuple):
    """The names of C classes, and which class has which."""

    distinct: list[str]  # N, each where the list has it first
    places: Tensor | None  # (C,), of each class's name among these; None where no two classes share one


def names_of(class_names: list[str]) -> Names:
    """Of a list of classes."""
    place = {name: index for index, name in enumerate(dict.fromkeys(class_names))}
    shared = len(place) < len(class_names)
    return Names(list(place), torch.tensor([place[name] for name in class_names]) if shared else None)


class Ranked(NamedTuple):
    """Of one image: the most probable name, of equally probable ones the first, its probability, and that of others."""

    label: str
    probability: float
    probabilities: dict[str, float]


def ranked(probabilities: Tensor, names: Names, counts: Sequence[int | None]) -> list[Ranked]:
    """(B, C) -> of each image so many names, at least one, the most probable first; where its count is None all names
    in the order of the list."""
    if names.places is not None:
        none = probabilities.new_zeros(len(probabilities), len(names.distinct))
        probabilities = none.index_add(1, names.places.to(none.device), probabilities)
    every = probabilities.tolist() if None in counts else []
    values, places = (part.tolist() for part in largest(probabilities, max(count or 1 for count in counts)))
    return [
        Ranked(
            names.distinct[best[0]],
            of_best[0],
            dict(zip(names.distinct, every[row], strict=True))
            if count is None
            else {names.distinct[place]: value for place, value in zip(best[:count], of_best[:count], strict=True)},
        )
        for row, (count, best, of_best) in enumerate(zip(counts, places, values, strict=True))
    ]


def largest(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values (B, count) and places (B, count) of the largest, or of all N where these are fewer: (B, N) -> the largest
    first, and of equal ones the one that comes first, which torch.topk leaves open."""
    bits = probabilities.float().contiguous().view(torch.int32).long()  # those of a positive number grow with it
    last = probabilities.shape[1] - 1
    keys = (bits << 32) + torch.arange(last, -1, -1, device=bits.device)
    places = last - (keys.topk(min(count, last + 1)).values & 0xFFFFFFFF)
    return probabilities.gather(1, places), places
