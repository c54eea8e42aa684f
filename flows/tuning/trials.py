"""The trials of a search on Ray Tune: each until it is done, or its process has died too often."""

import contextlib
import shutil
import sys
from collections import Counter
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
        ray.get(ledger.reopen.remote())
        drawn, given_up = _fit(plan, evaluate, ledger, runs, reuse=True), Counter()
        while left := _unfinished(ledger, drawn):
            given_up.update(map(trial_key, left))
            lost = [settings for settings in left if given_up[trial_key(settings)] > RETRIES]
            ray.get([ledger.end.remote(settings, LOST, DIED) for settings in lost])
            drawn = _fit(plan, evaluate, ledger, runs, reuse=False)  # a trial is given up where it is handed over
        records, trouble = ray.get([ledger.all.remote(), ledger.trouble.remote()])
    if trouble:
        print(f"warning: trials were not kept for a resume ({trouble}); free some space", file=sys.stderr)
    by_key = {trial_key(record["params"]): record for record in records}
    return [by_key[key] for key in dict.fromkeys(map(trial_key, drawn))]


def _fit(plan: Plan, evaluate: Evaluate, ledger, runs: SearchRuns | None, reuse: bool) -> list[Settings]:
    """One run of Ray Tune, which begins or resumes the search; its trials' settings as they were drawn.

    `reuse`: a process that has ended a trial takes another one.
    """
    import ray
    from ray import tune

    from flows.tuning.schedulers import scheduler
    from flows.tuning.watch import Halt, Held, Watch

    search, held = plan.search, Held(ledger, runs, in_order=plan.search.concurrent == 1)
    resources = {"cpu": plan.cluster.cpus_per_trial, "gpu": plan.cluster.gpus_per_trial}
    trainable = tune.with_parameters(run_trial, evaluate=evaluate, n_partitions=plan.n_partitions, ledger=ledger)
    with _storage(plan) as storage:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space=param_space(search, plan.space),
            tune_config=tune.TuneConfig(
                num_samples=1 if search.searcher == "grid" else search.trials,
                reuse_actors=reuse,
                search_alg=searcher(search, plan.points, _begun(plan, ray.get(ledger.all.remote()))),
                scheduler=scheduler(search, plan.n_partitions),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(storage),
                verbose=0,
                stop=Halt(plan.label),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[Watch(plan.label, search.trials, plan.n_partitions, held)],
            ),
        ).fit()
    return list(held.drawn.values())


def _unfinished(ledger, drawn: list[Settings]) -> list[Settings]:
    """Trials that Tune gave up with retries left: where a reused process is handed a trial and dies, or is too slow.

    The next run resumes the search with them, as the next process does after a kill.
    """
    import ray

    ended = {trial_key(one["params"]) for one in ray.get(ledger.all.remote()) if one["state"] != RUNNING}
    return [settings for settings in drawn if trial_key(settings) not in ended]


def _begun(plan: Plan, records: list[dict[str, Any]]) -> list[Settings]:
    """What a broken-off run had drawn, where the order of its trials depended on timing: it is proposed again.

    Without timing, a seeded searcher proposes the same by itself.
    """
    if plan.search.searcher != "optuna" or plan.search.concurrent == 1:
        return []
    return [record["params"] for record in records if record["params"] not in plan.points]


@contextlib.contextmanager
def _storage(plan: Plan) -> Iterator[Path]:
    """Tune's own files, which nobody needs after the search; what a killed one left goes first."""
    folder = STATE / "runs" / f"{plan.label.replace(' ', '-')}-{plan.folder.parent.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder.absolute()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
