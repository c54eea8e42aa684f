"""What the driver does as trials end: close them in the ledger, log them, move the progress bar."""

import ray
from ray import tune

from flows.progress import progress
from flows.tuning.ledger import COMPLETE, DIED, LOST, STOPPED

_held: dict[str, tuple] = {}  # what cannot be copied: Tune copies a callback by pickle before it uses it


class Watch(tune.Callback):
    """`ledger` is the actor, `runs` the search in MLflow or None, `drawn` takes settings by trial as they are drawn."""

    def __init__(self, label: str, trials: int, n_partitions: int, ledger, runs, drawn: dict):
        self.label, self.trials, self.n_partitions = label, trials, n_partitions
        _held[label] = ledger, runs, drawn

    def setup(self, **info):
        self.done, self.bars = 0, progress(self.label, self.trials)
        self.report = self.bars.__enter__()

    def on_step_begin(self, iteration, trials, **info):
        _, _, drawn = _held[self.label]
        for trial in trials:  # a trial that is tried again moves to the end of them
            drawn.setdefault(trial.trial_id, trial.config)

    def on_trial_complete(self, iteration, trials, trial, **info):
        seen = len((trial.last_result or {}).get("scores", []))
        self._end(trial.config, COMPLETE if seen == self.n_partitions else STOPPED)

    def on_trial_error(self, iteration, trials, trial, **info):
        if not trial.should_recover():  # else Ray Tune gave it up too early, and it is tried once more
            self._end(trial.config, LOST, DIED)

    def _end(self, config, state, failure=None):
        ledger, runs, _ = _held[self.label]
        record = ray.get(ledger.end.remote(config, state, failure))
        if runs:
            runs.trial(record)
        self.done += 1
        self.report(self.done)

    def on_experiment_end(self, trials, **info):
        self.bars.__exit__(None, None, None)
