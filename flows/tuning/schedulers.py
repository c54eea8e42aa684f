"""When a trial ends early by rank among all that got as far; a race (`comparison.still_in`) needs none."""

from typing import TYPE_CHECKING

from flows.settings.sections import SearchSection
from flows.tuning.trainable import PARTITIONS

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

GRACE = 2  # partitions before asha or median end a trial: which partition is hard says more than which setting is bad
REDUCTION = 2  # asha keeps one in so many at each rung


def scheduler(search: SearchSection, partitions: int) -> "TrialScheduler":
    """Ray Tune's scheduler of that name for trials of so many partitions."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    aim = {"metric": search.objective, "mode": "max", "time_attr": PARTITIONS}
    if search.scheduler == "asha" and partitions > GRACE:
        return ASHAScheduler(**aim, max_t=partitions, grace_period=GRACE, reduction_factor=REDUCTION)
    if search.scheduler == "median":
        return MedianStoppingRule(**aim, grace_period=GRACE, min_samples_required=3)
    return FIFOScheduler()


def stride(search: SearchSection, partitions: int) -> int:
    """How many partitions a trial sees between two looks of its scheduler."""
    return GRACE if search.scheduler in ("asha", "median") else partitions
