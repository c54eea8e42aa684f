"""Which of the labelled images are trained on, and which are held out to set what training cannot."""

import random
from typing import NamedTuple

from mmrl_core.adapting.labelled import Entry
from mmrl_core.data.splits import VAL_SHOTS
from mmrl_core.errors import UserError

ONE_IN = 4  # images of a class of which one is held out


class Division(NamedTuple):
    """Images to train on and images held out, each in the order of the data."""

    train: list[Entry]
    held_out: list[Entry]


def divide(entries: list[Entry], shots: int | None, share: float | None, seed: int) -> Division:
    """Draw them from each class by the seed.

    With `shots`, so many of a class are trained on and, of the rest, as many again but at most VAL_SHOTS are held out.
    Otherwise `share` of each class is held out, or, where it is None, one image in four and at most VAL_SHOTS: of a
    class with three images or fewer none. Of every class at least one image is trained on.
    """
    rng, chosen, held = random.Random(seed), set(), set()
    of_class: dict[int, list[int]] = {}
    for place, entry in enumerate(entries):
        of_class.setdefault(entry.label, []).append(place)
    for places in of_class.values():
        drawn = rng.sample(places, len(places))
        first, count = _counts(len(drawn), shots, share)
        chosen |= set(drawn[:first])
        held |= set(drawn[first : first + count])
    return Division([entries[place] for place in sorted(chosen)], [entries[place] for place in sorted(held)])


def _counts(images: int, shots: int | None, share: float | None) -> tuple[int, int]:
    """How many images of a class are trained on, and how many held out."""
    if share is not None:
        held = min(round(share * images), images - 1)
        return min(images - held, shots or images), held
    if shots is not None:
        return min(images, shots), min(shots, VAL_SHOTS)
    held = min(images // ONE_IN, VAL_SHOTS)
    return images - held, held


def check_share(share: float) -> float:
    """The share. Raises UserError unless it is from 0 to less than 1."""
    if share is True or not 0 <= share < 1:
        raise UserError(f"validation is {share}; give the share of images to hold out, from 0 to below 1, or images")
    return float(share)


def check_shots(shots: object) -> None:
    """Raises UserError unless it is None or a whole number from 1 on."""
    if shots is not None and (not isinstance(shots, int) or isinstance(shots, bool) or shots < 1):
        raise UserError(f"shots is {shots!r}; give 1 or more training images a class, or leave it for all")
