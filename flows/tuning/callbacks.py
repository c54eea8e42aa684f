"""What the driver does as trials end: close them in the ledger, log them, say how far the search is."""

from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune

from flows.project.progress import progress
from flows.settings.sections import SearchSection
from flows.tuning.ledger import COMPLETE, DIED, LOST, STOPPED, trial_key


@dataclass
class Held:
    """What cannot be copied: the ledger's actor, the search in MLflow or None, settings by key as they are drawn.

    `in_order`: what comes next depends on the trials before. `race`: who has not seen every partition may go on.
    `given_up`: Tune ended a trial although retries were left, and this run of Tune has to end. `told`: trials of which
    Tune told that they failed for good.
    """

    ledger: Any
    runs: Any
    in_order: bool
    n_partitions: int
    race: bool
    drawn: dict[str, dict] = field(default_factory=dict)
    given_up: bool = False
    told: set[str] = field(default_factory=set)

    def end(self, settings: dict, state: str = STOPPED, failure: str | None = None) -> None:
        """Close a trial, unless it is closed, and log it."""
        record = ray.get(self.ledger.end.remote(settings, state, failure))
        if self.runs:
            self.runs.trial(record)


_held: dict[str, Held] = {}  # by label, since Tune copies callbacks and stoppers by pickle before it uses them


class Halt(tune.Stopper):
    """Ends a run of Tune once a trial was given up that others depend on or wait for; the next run resumes it."""

    def __init__(self, label: str):
        self.label = label

    def __call__(self, trial_id, result):
        return False

    def stop_all(self):
        return _held[self.label].given_up


class Watch(tune.Callback):
    def __init__(self, label: str, search: SearchSection, held: Held):
        self.label, self.trials, self.objective = label, search.trials, search.objective
        _held[label] = held

    def setup(self, **info):
        self.ended, self.best = set(), (0, 0.0)
        self.bars = progress(self.label, self.trials, what="trial")
        self.report = self.bars.__enter__()

    def on_step_begin(self, iteration, trials, **info):
        held = _held[self.label]
        for trial in trials:  # early, since a trial that is tried again moves to the end of them
            for settings in trial.config["settings"]:
                held.drawn.setdefault(trial_key(settings), settings)
            # A process that was too slow to take it: Tune tells nobody, and the searcher waits for the trial for ever.
            held.given_up |= trial.status == trial.ERROR and trial.trial_id not in held.told

    def on_trial_complete(self, iteration, trials, trial, **info):
        held = _held[self.label]
        for settings in trial.config["settings"]:
            record = ray.get(held.ledger.open.remote(settings))
            if len(record["scores"]) == held.n_partitions:
                held.end(settings, COMPLETE)
            elif not held.race or record["state"] != "running":
                held.end(settings)
        self._say(trial)

    def on_trial_error(self, iteration, trials, trial, **info):
        held = _held[self.label]
        held.told.add(trial.trial_id)
        if trial.should_recover():
            held.given_up |= held.in_order
            return
        for settings in trial.config["settings"]:
            held.end(settings, LOST, DIED)
        self._say(trial)

    def _say(self, trial) -> None:
        """The best is of the trials that saw as many partitions as any."""
        for one in (trial.last_result or {}).get("each", []):
            if one["scores"]:
                self.best = max(self.best, (len(one["scores"]), one[self.objective]))
        self.ended |= set(map(trial_key, trial.config["settings"]))
        self.report(len(self.ended), note=f"best {self.best[1]:.4g}" if self.best[0] else "")

    def on_experiment_end(self, trials, **info):
        self.on_step_begin(0, trials)  # one may have been drawn in the last step
        self.bars.__exit__(None, None, None)
