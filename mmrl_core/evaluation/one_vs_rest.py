"""AUROC of every class against the rest, from probabilities that come a batch at a time.

N images, C classes, B images of a batch. The area under a class's ROC curve is the share of pairs, of an image of the
class and one of another, in which the former has the larger probability; of an equal pair half is won (Mann and
Whitney, 1947). So the probabilities of a class's own images have to be known beforehand, and then any others can be
counted against them and forgotten: memory grows with N and with C, not with their product.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class _Level(NamedTuple):
    """Classes with about as many images each."""

    classes: Tensor  # (c,) places
    own: Tensor  # (c, m) their images' probabilities, smallest first; infinite where a class has fewer
    halves: Tensor  # (c,) so far: twice the own images below a probability, and those equal to it once


class OneVsRest:
    """Counts of all classes that have an image. `add` every batch once, then ask for the `mean`."""

    def __init__(self, labels: Tensor, own: Tensor):
        """Labels (N,) of all images to come, and the probability of each one's class (N,)."""
        by_value = own.argsort(stable=True)
        order = by_value[labels[by_value].argsort(stable=True)]  # by class, then by value
        classes, counts = labels[order].unique_consecutive(return_counts=True)
        first, values = counts.cumsum(0) - counts, own[order]
        self._counts, self._images = counts, len(labels)
        self._levels: list[tuple[Tensor, _Level]] = []
        sizes = 2 ** (counts - 1).clamp_min(1).log2().floor().long()  # 1, 2, 4, ...: no level is more than half empty
        for size in sizes.unique().tolist():
            rows = (sizes == size).nonzero()[:, 0]
            place = torch.arange(int(counts[rows].max()))
            is_own = place < counts[rows, None]
            at = (first[rows, None] + place).clamp_max(len(values) - 1)
            level = values[at].masked_fill(~is_own, torch.inf)
            self._levels.append((rows, _Level(classes[rows], level, torch.zeros(len(rows), dtype=torch.long))))

    def add(self, probabilities: Tensor) -> None:
        """(B, C), on a CPU."""
        for _, (classes, own, halves) in self._levels:
            seen = probabilities.index_select(1, classes).T.contiguous()
            below, with_equal = (torch.searchsorted(own, seen, right=right) for right in (False, True))
            halves += (below + with_equal).sum(dim=1)

    def mean(self) -> float | None:
        """The mean over classes that have an image; None where all images are of one class."""
        if len(self._counts) < 2:
            return None
        areas = torch.empty(len(self._counts), dtype=torch.double)
        for rows, level in self._levels:
            own = self._counts[rows].double()
            # Of all pairs with an own image those that it wins; without the class's pairs with itself, half of them.
            won = own * self._images - level.halves / 2 - own**2 / 2
            areas[rows] = won / (own * (self._images - own))
        return float(areas.mean())
