"""The trials of a search on Ray Tune: each until it is done, or its process has died too often."""

import contextlib
import importlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.cluster.connection import Needs, on_this_node
from flows.project.paths import STATE
from flows.settings.sections import SearchSection
from flows.tuning.ledger import DIED, Ledger, LedgerActor, trial_key
from flows.tuning.mlflow_runs import SearchRuns
from flows.tuning.trainable import Evaluate, run_trial
from mmrl_core.search.comparison import looks
from mmrl_core.search.trial import Record, Space, TrialSettings

if TYPE_CHECKING:
    from flows.tuning.callbacks import SearchProgress
    from flows.tuning.rounds import Rounds

RETRIES = 5  # of a trial whose process or node died
MANY = 10**6  # trials that Tune may be given: the searcher says when there are no more


class Plan(NamedTuple):
    """What Ray Tune has to know of a search."""

    label: str
    search: SearchSection
    needs: Needs  # of a trial
    space: Space
    points: list[TrialSettings]  # tried first
    n_partitions: int
    folder: Path  # of its ledger
    batch: int = 1  # of settings in a trial of Tune, if one such runs at a time


def import_tune() -> None:
    """Import what takes a second or two, while a worker is busy with its own imports."""
    for name in ("optuna", "ray.tune"):
        importlib.import_module(name)


def run_trials(plan: Plan, evaluate: Evaluate, runs: SearchRuns | None = None) -> list[Record]:
    """Run all trials on the cluster that this process is connected to; their records, in the order of their drawing.

    Trials that Tune gave up with retries left (a reused process was handed a trial and died, or was too slow) are taken
    up by another run of Tune, as the next process does after a kill.
    """
    ledger = LedgerActor(on_this_node(Ledger).remote(plan.folder.absolute()))
    ledger.reopen()
    drawn = _fit(plan, evaluate, ledger, runs, reuse=True)
    given_up: Counter[str] = Counter()
    while left := ledger.unfinished(drawn):
        given_up.update(map(trial_key, left))
        for settings in left:
            if given_up[trial_key(settings)] > RETRIES:
                ledger.end(settings, "lost", DIED)
        drawn = _fit(plan, evaluate, ledger, runs, reuse=False)  # a trial is given up where it is handed over
    for trouble in ledger.troubles():
        print(f"warning: {trouble}", file=sys.stderr)
    return ledger.records(drawn)


def _fit(
    plan: Plan, evaluate: Evaluate, ledger: LedgerActor, runs: SearchRuns | None, reuse: bool
) -> list[TrialSettings]:
    """One run of Ray Tune, which begins or resumes the search; its trials' settings as they were drawn.

    `reuse`: a process that has ended a trial takes another one.
    """
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter

    from flows.tuning.callbacks import SearchProgress, StopOnLostTrial
    from flows.tuning.schedulers import scheduler

    search = plan.search
    stopper = StopOnLostTrial()
    progress = SearchProgress(plan.label, search, plan.n_partitions, ledger, runs, stopper)
    rounds = _rounds(plan, ledger, progress)
    trainable = tune.with_parameters(run_trial, evaluate=evaluate, ledger=ledger)
    with _storage(plan) as storage:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": plan.needs.cpus, "gpu": plan.needs.gpus}),
            tune_config=tune.TuneConfig(
                num_samples=MANY,
                reuse_actors=reuse,
                search_alg=ConcurrencyLimiter(rounds, search.concurrent) if search.concurrent else rounds,
                scheduler=scheduler(search, plan.n_partitions),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(storage),
                verbose=0,
                stop=stopper,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[progress],
            ),
        ).fit()
    return rounds.drawn


def _rounds(plan: Plan, ledger: LedgerActor, progress: "SearchProgress") -> "Rounds":
    """Tune's search algorithm: the proposals, and in a race who goes on."""
    from flows.tuning.rounds import Race, Rounds
    from flows.tuning.schedulers import stride
    from flows.tuning.searchers import searcher

    search, n = plan.search, plan.n_partitions
    return Rounds(
        searcher(search, plan.space, plan.points, _drawn_before(plan, ledger)),
        search.trials,
        batch=plan.batch if search.concurrent == 1 else 1,
        looks=looks(n) if search.scheduler == "race" else [n],
        stride=stride(search, n),
        next_round=Race(ledger, search, plan.needs, progress.end),
    )


def _drawn_before(plan: Plan, ledger: LedgerActor) -> list[TrialSettings]:
    """Settings that a run which was broken off had drawn, to be proposed again, where timing had a say in them.

    Where it had none (trials one at a time, or a searcher that does not learn) a seeded searcher proposes the same.
    """
    if plan.search.searcher != "optuna" or plan.search.concurrent == 1:
        return []
    return [record["params"] for record in ledger.all() if record["params"] not in plan.points]


@contextlib.contextmanager
def _storage(plan: Plan) -> Iterator[Path]:
    """A folder for Tune's own files, which nobody needs after the search; what a killed search left goes first."""
    folder = STATE / "runs" / f"{plan.label.replace(' ', '-')}-{plan.folder.parent.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder.absolute()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
