"""The trials of a search on Ray Tune: each until it is done, or until its process has died too often."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flows.cluster import Needs, connected, on_this_node
from flows.paths import STATE
from flows.tuning.ledger import DIED, LOST, RUNNING, Ledger, trial_key
from flows.tuning.space import Space, param_space, searcher
from flows.tuning.tracking import SearchRuns
from flows.tuning.trial import Evaluate, run_trial
from mmrl_core.sections import ClusterSection, SearchSection

RETRIES = 5  # of a trial whose process or node died
Settings = dict[str, Any]


class Plan(NamedTuple):
    """What Ray Tune has to know of a search."""

    label: str
    search: SearchSection
    cluster: ClusterSection
    space: Space
    points: list[Settings]  # tried first
    n_partitions: int
    folder: Path  # of its ledger


def run_trials(plan: Plan, evaluate: Evaluate, runs: SearchRuns | None = None) -> list[dict[str, Any]]:
    """Run all trials on the plan's cluster; their records, in the order in which they were drawn."""
    import ray

    with connected(plan.cluster, Needs(plan.cluster.cpus_per_trial, plan.cluster.gpus_per_trial)):
        ledger = on_this_node(Ledger).remote(plan.folder.absolute())
        drawn = _fit(plan, evaluate, ledger, runs)
        for _ in range(RETRIES):
            if again := _unfinished(ledger, drawn):
                _fit(_only(plan, again), evaluate, ledger, runs)
        ray.get([ledger.end.remote(settings, LOST, DIED) for settings in _unfinished(ledger, drawn)])
        records, trouble = ray.get([ledger.all.remote(), ledger.trouble.remote()])
    if trouble:
        print(f"warning: trials were not kept for a resume ({trouble}); free some space", file=sys.stderr)
    by_key = {trial_key(record["params"]): record for record in records}
    return [by_key[key] for key in dict.fromkeys(map(trial_key, drawn))]


def _fit(plan: Plan, evaluate: Evaluate, ledger, runs: SearchRuns | None) -> list[Settings]:
    """One run of Ray Tune; the settings of its trials, in the order in which they were drawn."""
    from ray import tune

    from flows.tuning.schedulers import scheduler
    from flows.tuning.watch import Watch

    search, drawn = plan.search, {}
    resources = {"cpu": plan.cluster.cpus_per_trial, "gpu": plan.cluster.gpus_per_trial}
    trainable = tune.with_parameters(run_trial, evaluate=evaluate, n_partitions=plan.n_partitions, ledger=ledger)
    with _storage(plan) as storage:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space=param_space(search, plan.space),
            tune_config=tune.TuneConfig(
                num_samples=1 if search.searcher == "grid" else search.trials,
                reuse_actors=True,
                search_alg=searcher(search, plan.points, _begun(plan)),
                scheduler=scheduler(search, plan.n_partitions),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[Watch(plan.label, search.trials, plan.n_partitions, ledger, runs, drawn)],
            ),
        ).fit()
    return list(drawn.values())


def _unfinished(ledger, drawn: list[Settings]) -> list[Settings]:
    """What Ray Tune gave up although retries were left: a trial whose reused process died as it was handed over."""
    import ray

    ended = {trial_key(one["params"]) for one in ray.get(ledger.all.remote()) if one["state"] != RUNNING}
    return [settings for settings in drawn if trial_key(settings) not in ended]


def _only(plan: Plan, points: list[Settings]) -> Plan:
    """The plan with these trials and no others."""
    search = plan.search.model_copy(update={"searcher": "random", "trials": len(points)})
    return plan._replace(search=search, points=points)


def _begun(plan: Plan) -> list[Settings]:
    """What a broken-off search had drawn, where the order of its trials depended on timing: it is proposed again.

    Without timing, a seeded searcher proposes the same by itself.
    """
    if plan.search.searcher != "optuna" or plan.search.concurrent == 1:
        return []
    return [record["params"] for record in Ledger(plan.folder).all() if record["params"] not in plan.points]


@contextlib.contextmanager
def _storage(plan: Plan) -> Iterator[Path]:
    """Tune's own files, which nobody needs after the search; what a killed one left goes first."""
    folder = STATE / "runs" / f"{plan.label.replace(' ', '-')}-{plan.folder.parent.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder.absolute()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
