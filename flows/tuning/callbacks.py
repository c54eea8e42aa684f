"""What happens as Ray Tune's trials end: the ledger closes them, MLflow logs them, a line says how far the search is.

A trial of Tune holds a batch of the search's (`trainable.TrialBatch`).
"""

from typing import TYPE_CHECKING, Any

from ray import tune

from flows.project.progress import progress
from flows.settings.sections import SearchSection
from flows.tuning.ledger import DIED, LedgerActor
from mmrl_core.search.trial import State, TrialSettings

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

    from flows.tuning.mlflow_runs import SearchRuns


class StopOnLostTrial(tune.Stopper):
    """Ends a run of Tune once a trial was given up that others depend on or wait for; the next run resumes it.

    A process that was too slow to take its next trial is one: Tune ends that trial and tells nobody, and the searcher
    waits for it. It has to be noticed at the end of the same step, since the next one begins with waiting.
    """

    def __init__(self) -> None:
        self.is_lost = False  # Tune ended a trial although retries were left
        self.trials: list[TuneTrial] = []  # of this run, as Tune has them
        self.failed: set[str] = set()  # those of which Tune told that they failed for good, by its names

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.is_lost or any(
            trial.status == trial.ERROR and trial.trial_id not in self.failed for trial in self.trials
        )

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of the trials: Tune pickles it into every checkpoint of its own, and a resume never reads those."""
        return {"is_lost": self.is_lost, "trials": [], "failed": set()}


class SearchProgress(tune.Callback):
    """Ends the trials of a search, reports how many have ended, and tells `stopper` of a lost one."""

    def __init__(
        self, label: str, search: SearchSection, n_partitions: int, ledger: LedgerActor, runs: "SearchRuns | None",
        stopper: StopOnLostTrial,
    ):  # fmt: skip
        self.label, self.search, self.n_partitions, self.ledger, self.runs = label, search, n_partitions, ledger, runs
        self.stopper = stopper
        self.ended: set[str] = set()  # by key
        self.best = (0, 0.0)  # partitions seen, and the objective's mean over them

    def setup(self, **info: Any) -> None:
        self.bars = progress(self.label, self.search.trials, what="trial")
        self.report = self.bars.__enter__()

    def end(self, settings: TrialSettings, state: State = "stopped", failure: str | None = None) -> str:
        """Close a trial, unless it is closed, and log it; returns its key."""
        record = self.ledger.end(settings, state, failure)
        if self.runs:
            self.runs.trial(record)
        return record["key"]

    def on_step_begin(self, iteration: int, trials: "list[TuneTrial]", **info: Any) -> None:
        self.stopper.trials = trials

    def on_trial_complete(self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any) -> None:
        for settings in trial.config["settings"]:
            record = self.ledger.open(settings)
            if len(record["scores"]) == self.n_partitions:
                self.end(settings, "complete")
            elif self.search.scheduler != "race" or record["state"] != "running":
                self.end(settings)
            self.ended.add(record["key"])
        self._say(trial)

    def on_trial_error(self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any) -> None:
        self.stopper.failed.add(trial.trial_id)
        if trial.should_recover():
            self.stopper.is_lost |= self.search.concurrent == 1  # what comes next depends on the trials before
            return
        self.ended |= {self.end(settings, "lost", DIED) for settings in trial.config["settings"]}
        self._say(trial)

    def _say(self, trial: "TuneTrial") -> None:
        """The best is of the trials that saw as many partitions as any."""
        for report in (trial.last_result or {}).get("each", []):
            if report["scores"]:
                self.best = max(self.best, (len(report["scores"]), report[self.search.objective]))
        self.report(len(self.ended), note=f"best {self.best[1]:.4g}" if self.best[0] else "")

    def on_experiment_end(self, trials: "list[TuneTrial]", **info: Any) -> None:
        self.bars.__exit__(None, None, None)
