"""When a trial ends early. A trial's resource is the partitions of the classes it has been trained and scored on."""

from mmrl_core.choice import clearly_worse, leads
from mmrl_core.sections import SearchSection

GRACE = 2  # partitions before asha or median end a trial: which partition is hard says more than which setting is bad
REDUCTION = 2  # asha keeps one in so many at each rung
TIME = "training_iteration"  # Ray Tune counts reports, which come one a partition


def scheduler(search: SearchSection, partitions: int):
    """Ray Tune's scheduler of that name for trials of so many partitions."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    aim = {"metric": search.objective, "mode": "max", "time_attr": TIME}
    if search.scheduler == "race":
        return race(search.objective)
    if search.scheduler == "asha" and partitions > GRACE:
        return ASHAScheduler(**aim, max_t=partitions, grace_period=GRACE, reduction_factor=REDUCTION)
    if search.scheduler == "median":
        return MedianStoppingRule(**aim, grace_period=GRACE, min_samples_required=3)
    return FIFOScheduler()


def race(objective: str):
    """Trials end once they are clearly worse than the best so far, told by pairs of partitions, not by rank."""
    from ray.tune.schedulers import FIFOScheduler

    class Race(FIFOScheduler):
        leader: list[dict] = []

        def on_trial_result(self, controller, trial, result):
            return self.STOP if clearly_worse(result["scores"], self.leader, objective) else self.CONTINUE

        def on_trial_complete(self, controller, trial, result):
            if result and leads(result.get("scores", []), self.leader, objective):
                self.leader = result["scores"]

    return Race()
