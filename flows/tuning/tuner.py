"""The trials of a search on Ray Tune: each until it is done, or its process has died too often."""

import contextlib
import importlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from flows.cluster.connection import Needs, on_this_node, room
from flows.project.paths import STATE
from flows.settings.sections import SearchSection
from flows.tuning.ledger import DIED, FAILED, LOST, RUNNING, Ledger, trial_key
from flows.tuning.mlflow_runs import SearchRuns
from flows.tuning.space import DEPTH, Space, searcher
from flows.tuning.trainable import Evaluate, Settings, run_trial
from mmrl_core.search.comparison import looks, overall, still_in

RETRIES = 5  # of a trial whose process or node died
MANY = 10**6  # jobs that Tune may be given: the searcher says when there are no more


class Plan(NamedTuple):
    """What Ray Tune has to know of a search."""

    label: str
    search: SearchSection
    needs: Needs  # of a trial
    space: Space
    points: list[Settings]  # tried first
    n_partitions: int
    folder: Path  # of its ledger
    batch: int = 1  # of settings in a job, if one job runs at a time


def import_tune() -> None:
    """What takes a second or two to import, while a worker is busy with its own."""
    for name in ("optuna", "ray.tune"):
        importlib.import_module(name)


def run_trials(plan: Plan, evaluate: Evaluate, runs: SearchRuns | None = None) -> list[dict[str, Any]]:
    """Run all trials on the cluster that this process is connected to; their records, in the order of their drawing."""
    import ray

    ledger = on_this_node(Ledger).remote(plan.folder.absolute())
    ray.get(ledger.reopen.remote())
    drawn, given_up = _fit(plan, evaluate, ledger, runs, reuse=True), Counter()
    while left := _unfinished(ledger, drawn):
        given_up.update(map(trial_key, left))
        lost = [settings for settings in left if given_up[trial_key(settings)] > RETRIES]
        ray.get([ledger.end.remote(settings, LOST, DIED) for settings in lost])
        drawn = _fit(plan, evaluate, ledger, runs, reuse=False)  # a trial is given up where it is handed over
    records, troubles = ray.get([ledger.all.remote(), ledger.troubles.remote()])
    for trouble in troubles:
        print(f"warning: {trouble}", file=sys.stderr)
    by_key = {trial_key(record["params"]): record for record in records}
    return [by_key[key] for key in dict.fromkeys(map(trial_key, drawn))]


def _fit(plan: Plan, evaluate: Evaluate, ledger, runs: SearchRuns | None, reuse: bool) -> list[Settings]:
    """One run of Ray Tune, which begins or resumes the search; its trials' settings as they were drawn.

    `reuse`: a process that has ended a trial takes another one.
    """
    from ray import tune

    from flows.tuning.callbacks import Halt, Held, Watch
    from flows.tuning.schedulers import scheduler

    search = plan.search
    held = Held(ledger, runs, in_order=search.concurrent == 1, n_partitions=plan.n_partitions, race=_is_race(plan))
    resources = {"cpu": plan.needs.cpus, "gpu": plan.needs.gpus}
    trainable = tune.with_parameters(run_trial, evaluate=evaluate, ledger=ledger)
    with _storage(plan) as storage:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                num_samples=MANY,
                reuse_actors=reuse,
                search_alg=_rounds(plan, ledger, held),
                scheduler=scheduler(search, plan.n_partitions),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(storage),
                verbose=0,
                stop=Halt(plan.label),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[Watch(plan.label, search, held)],
            ),
        ).fit()
    return list(held.drawn.values())


def _is_race(plan: Plan) -> bool:
    return plan.search.scheduler == "race"


def _rounds(plan: Plan, ledger, held):
    """Tune's search algorithm: the proposals, and in a race who goes on."""
    import ray
    from ray.tune.search import ConcurrencyLimiter

    from flows.tuning.rounds import Rounds
    from flows.tuning.schedulers import stride

    search, n = plan.search, plan.n_partitions
    proposals = searcher(search, plan.space, plan.points, _begun(plan, ray.get(ledger.all.remote())))
    rounds = Rounds(
        proposals, search.trials, plan.batch if search.concurrent == 1 else 1,
        looks(n) if _is_race(plan) else [n], stride(search, n),
        lambda seen: side_by_side(_contenders(held, seen, search), plan),
    )  # fmt: skip
    return ConcurrencyLimiter(rounds, search.concurrent) if search.concurrent else rounds


def _contenders(held, seen: int, search: SearchSection) -> list[Settings]:
    """The settings that go on after so many partitions; the trials of the others are over."""
    import ray

    records = [one for one in ray.get(held.ledger.all.remote()) if trial_key(one["params"]) in held.drawn]
    # Of one that went on in a process that is gone, what it knew when it was looked at here.
    going = [one | {"scores": one["scores"][:seen]} for one in records if _is_going(one, seen)]
    if not going:
        return []
    kept = still_in([one | overall(one["scores"]) for one in going], search.objective)
    keys = {trial_key(one["params"]) for one in kept}
    for one in going:
        if trial_key(one["params"]) not in keys:
            held.end(one["params"])
    return [one["params"] for one in kept]


def _is_going(record: dict[str, Any], seen: int) -> bool:
    return record["state"] not in (FAILED, LOST) and len(record["scores"]) >= seen


def side_by_side(settings: list[Settings], plan: Plan) -> list[list[Settings]]:
    """Shared out among as many jobs as run at once, so that what trains together is in one."""
    jobs = min(plan.search.concurrent or max(1, room(plan.needs)), len(settings))
    ordered = sorted(settings, key=lambda one: one.get(DEPTH, 0))
    bounds = [len(ordered) * job // jobs for job in range(jobs + 1)] if jobs else []
    return [ordered[start:stop] for start, stop in pairwise(bounds)]


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
