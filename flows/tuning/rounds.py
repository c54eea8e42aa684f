"""Who comes next in a search: settings as they are proposed, then, in a race, who goes on to further partitions."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from flows.tuning.trainable import Job, Settings


class Rounds(Searcher):
    """Hands Ray Tune a job at a time.

    The first round is `trials` settings of `searcher`, `batch` of them a job, each on the first of `looks` partitions.
    When all have seen as many as the next look, `still_in(seen)` says which go on, in how many jobs side by side; the
    others are over.
    """

    def __init__(
        self, searcher: Searcher, trials: int, batch: int, looks: list[int], stride: int,
        still_in: Callable[[int], list[list[Settings]]],
    ):  # fmt: skip
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.searcher, self.left, self.batch, self.looks, self.stride = searcher, trials, batch, looks, stride
        self.still_in = still_in
        self.proposed: dict[str, list[str]] = {}  # by Tune's name of a job, the searcher's names of its settings
        self.running: set[str] = set()
        self.jobs: list[Job] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next job; None while there is none yet."""
        if self.left:
            proposals = self._propose(trial_id)
            if proposals:
                return self._begin(trial_id, Job(proposals, self.looks[0], self.stride))
            if self.left:
                return None
        while not self.jobs:
            if self.running:
                return None
            if len(self.looks) == 1:
                return Searcher.FINISHED
            seen = self.looks.pop(0)
            self.jobs = [Job(settings, self.looks[0], self.stride) for settings in self.still_in(seen)]
        return self._begin(trial_id, self.jobs.pop(0))

    def _propose(self, trial_id: str) -> list[Settings]:
        names, proposals = [], []
        while self.left and len(proposals) < self.batch:
            name = f"{trial_id}-{len(names)}"
            settings = self.searcher.suggest(name)
            if settings is None:
                break
            if settings == Searcher.FINISHED:
                self.left = 0
                break
            self.left -= 1
            names.append(name)
            proposals.append(settings)
        self.proposed[trial_id] = names
        return proposals

    def _begin(self, trial_id: str, job: Job) -> dict[str, Any]:
        self.running.add(trial_id)
        return job.config()

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.running.discard(trial_id)
        for place, name in enumerate(self.proposed.get(trial_id, [])):
            self.searcher.on_trial_complete(name, result["each"][place] if result else None, error)

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
