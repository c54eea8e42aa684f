"""What the driver does as trials end: close them in the ledger, log them, move the progress bar."""

from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune

from flows.progress import progress
from flows.tuning.ledger import COMPLETE, DIED, LOST, STOPPED


@dataclass
class Held:
    """What cannot be copied: the ledger's actor, the search in MLflow or None, settings by trial as they are drawn.

    `in_order`: what comes next depends on the trials before. `given_up`: Tune ended a trial although retries were left,
    and this run of Tune has to end. `told`: trials of which Tune told that they failed for good.
    """

    ledger: Any
    runs: Any
    in_order: bool
    drawn: dict[str, dict] = field(default_factory=dict)
    given_up: bool = False
    told: set[str] = field(default_factory=set)


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
    def __init__(self, label: str, trials: int, n_partitions: int, held: Held):
        self.label, self.trials, self.n_partitions = label, trials, n_partitions
        _held[label] = held

    def setup(self, **info):
        self.done, self.bars = 0, progress(self.label, self.trials)
        self.report = self.bars.__enter__()

    def on_step_begin(self, iteration, trials, **info):
        held = _held[self.label]
        for trial in trials:  # early, since a trial that is tried again moves to the end of them
            held.drawn.setdefault(trial.trial_id, trial.config)
            # A process that was too slow to take it: Tune tells nobody, and the searcher waits for the trial for ever.
            held.given_up |= trial.status == trial.ERROR and trial.trial_id not in held.told

    def on_trial_complete(self, iteration, trials, trial, **info):
        seen = len((trial.last_result or {}).get("scores", []))
        self._end(trial.config, COMPLETE if seen == self.n_partitions else STOPPED)

    def on_trial_error(self, iteration, trials, trial, **info):
        held = _held[self.label]
        held.told.add(trial.trial_id)
        if trial.should_recover():
            held.given_up |= held.in_order
        else:
            self._end(trial.config, LOST, DIED)

    def _end(self, config, state, failure=None):
        ledger, runs = _held[self.label].ledger, _held[self.label].runs
        record = ray.get(ledger.end.remote(config, state, failure))
        if runs:
            runs.trial(record)
        self.done += 1
        self.report(self.done)

    def on_experiment_end(self, trials, **info):
        self.on_step_begin(0, trials)  # one may have been drawn in the last step
        self.bars.__exit__(None, None, None)
