"""Who comes next in a search: settings as they are proposed, then, in a race, who goes on to further partitions."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from flows.tuning.trial import Job, Settings


class Rounds(Searcher):
    """Hands Ray Tune a job at a time.

    The first round is `trials` settings of `searcher`, each on the first of `looks` partitions. When all have seen as
    many as the next look, `still_in(seen)` says which go on, in how many jobs side by side; the others are over.
    """

    def __init__(
        self, searcher: Searcher, trials: int, looks: list[int], stride: int,
        still_in: Callable[[int], list[list[Settings]]],
    ):  # fmt: skip
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.searcher, self.left, self.looks, self.stride, self.still_in = searcher, trials, looks, stride, still_in
        self.proposed: set[str] = set()  # Tune's names of the first round's trials
        self.running: set[str] = set()
        self.jobs: list[Job] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next job; None while there is none yet."""
        if self.left:
            settings = self.searcher.suggest(trial_id)
            if settings is None:
                return None
            if settings != Searcher.FINISHED:
                self.left -= 1
                self.proposed.add(trial_id)
                return self._begin(trial_id, Job([settings], self.looks[0], self.stride))
            self.left = 0
        while not self.jobs:
            if self.running:
                return None
            if len(self.looks) == 1:
                return Searcher.FINISHED
            seen = self.looks.pop(0)
            self.jobs = [Job(settings, self.looks[0], self.stride) for settings in self.still_in(seen)]
        return self._begin(trial_id, self.jobs.pop(0))

    def _begin(self, trial_id: str, job: Job) -> dict[str, Any]:
        self.running.add(trial_id)
        return job.config()

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.running.discard(trial_id)
        if trial_id in self.proposed:
            self.searcher.on_trial_complete(trial_id, result, error)

    def get_state(self) -> dict:
        """Nothing: a search that is broken off goes on from its ledger."""
        return {}

    def set_state(self, state: dict) -> None:
        pass


class Listed(Searcher):
    """Settings from a list."""

    def __init__(self, metric: str, mode: str, settings: list[Settings]):
        super().__init__(metric=metric, mode=mode)
        self.settings = list(settings)

    def suggest(self, trial_id: str) -> Settings | str:
        return self.settings.pop(0) if self.settings else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass
