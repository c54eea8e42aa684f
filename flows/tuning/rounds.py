"""Who comes next in a search: settings as they are proposed, then, in a race, who goes on to further partitions."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ray.tune.search import Searcher

from flows.cluster.connection import Needs, room
from flows.settings.sections import SearchSection
from flows.tuning.ledger import LedgerActor
from flows.tuning.space import DEPTH
from flows.tuning.trainable import TrialBatch
from mmrl_core.search.comparison import compared, still_in
from mmrl_core.search.trial import Record, TrialSettings

Next = Callable[[list[TrialSettings], int], list[list[TrialSettings]]]


class Rounds(Searcher):
    """Ray Tune's search algorithm: gives it a batch of the search's trials at a time.

    The first round is `trials` settings of `searcher`, `batch` of them at a time, each on the first of `looks`
    partitions. When all have seen so many, `next_round` says which of the settings drawn go on to the next look, in how
    many batches side by side; the others are over.
    """

    def __init__(
        self, searcher: Searcher, trials: int, batch: int, looks: list[int], stride: int, next_round: Next,
    ):  # fmt: skip
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.searcher, self.left, self.batch, self.looks, self.stride = searcher, trials, batch, looks, stride
        self.next_round = next_round
        self.drawn: list[TrialSettings] = []
        self.proposed: dict[str, list[str]] = {}  # by Tune's name of a batch, the searcher's names of its settings
        self.running: set[str] = set()
        self.waiting: list[list[TrialSettings]] = []

    def suggest(self, trial_id: str) -> TrialBatch | str | None:
        """The config of Tune's next trial; None while there is none yet."""
        if self.left:
            proposals = self._propose(trial_id)
            if proposals:
                return self._begin(trial_id, proposals)
            if self.left:
                return None
        while not self.waiting:
            if self.running:
                return None
            if len(self.looks) == 1:
                return Searcher.FINISHED
            self.waiting = self.next_round(self.drawn, self.looks.pop(0))
        return self._begin(trial_id, self.waiting.pop(0))

    def _propose(self, trial_id: str) -> list[TrialSettings]:
        names: list[str] = []
        proposals: list[TrialSettings] = []
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
        self.drawn += proposals
        return proposals

    def _begin(self, trial_id: str, settings: list[TrialSettings]) -> TrialBatch:
        self.running.add(trial_id)
        return {"settings": settings, "partitions": self.looks[0], "stride": self.stride}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.running.discard(trial_id)
        for place, name in enumerate(self.proposed.get(trial_id, [])):
            self.searcher.on_trial_complete(name, result["each"][place] if result else None, error)

    def get_state(self) -> dict:
        """Nothing: a search that is broken off goes on from its ledger."""
        return {}

    def set_state(self, state: dict) -> None:
        pass


@dataclass
class Race:
    """Who goes on in a race: a `next_round` that closes, by `end`, the trials that are over."""

    ledger: LedgerActor
    search: SearchSection
    needs: Needs  # of a batch
    end: Callable[[TrialSettings], object]

    def __call__(self, drawn: list[TrialSettings], seen: int) -> list[list[TrialSettings]]:
        """The settings that go on after so many partitions, in batches."""
        going = [record for record in self.ledger.records(drawn) if _is_going(record, seen)]
        if not going:
            return []
        # Of one that went on in a process that is gone, what it knew when it was looked at here.
        trials = [compared(record, seen) for record in sorted(going, key=lambda record: record["number"])]
        ahead = still_in(trials, self.search.objective)
        for trial in trials:
            if trial not in ahead:
                self.end(trial["params"])
        return side_by_side([trial["params"] for trial in ahead], self.search, self.needs)


def _is_going(record: Record, seen: int) -> bool:
    return record["state"] not in ("failed", "lost") and len(record["scores"]) >= seen


def side_by_side(settings: list[TrialSettings], search: SearchSection, needs: Needs) -> list[list[TrialSettings]]:
    """Shared out among as many batches as run at once, so that what trains together is in one."""
    batches = min(search.concurrent or max(1, room(needs)), len(settings))
    ordered = sorted(settings, key=lambda params: params.get(DEPTH, 0))
    bounds = [len(ordered) * batch // batches for batch in range(batches + 1)] if batches else []
    return [ordered[start:stop] for start, stop in pairwise(bounds)]
