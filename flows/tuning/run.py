"""The driver of a search: resume or begin it, run its trials on Ray Tune, and make its document."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flows.backbones import backbone_of
from flows.cluster import Needs, connected, on_this_node
from flows.features import open_store
from flows.outputs import locked
from flows.paths import STATE
from flows.tuning.identity import earlier, facts, open_folder
from flows.tuning.ledger import FAILED, LOST, Ledger, trial_key
from flows.tuning.space import (
    Space,
    check_depths,
    first_points,
    open_dimensions,
    param_space,
    published_point,
    searcher,
)
from flows.tuning.tracking import UNTRACKED, SearchRuns
from flows.tuning.trial import Evaluate, PartitionScores, run_trial
from mmrl_core.choice import choose, comparisons, overall, pareto_front
from mmrl_core.config import Params
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, write_json
from mmrl_core.sections import ClusterSection, SearchSection

RETRIES = 5  # of a trial whose process or node died
DONE, TRIALS, POINTS = "done.json", "trials", "points.json"


class Plan(NamedTuple):
    """What Ray Tune has to know of a search."""

    label: str
    search: SearchSection
    cluster: ClusterSection
    space: Space
    points: list[dict[str, Any]]  # tried first
    n_partitions: int
    folder: Path  # of its ledger


def tune(params: Params, dataset: str, method: str) -> dict[str, Any]:
    """The search's document: all trials, which of them is chosen, its settings, and the prompt template.

    A search of the same settings and data goes on where it ended; one that is through costs nothing.
    """
    space = open_dimensions(params)
    if not space:
        return {**_settled(params, dataset, backbone_of(params.backbone))[0], "trials": [], "choice": {}}
    found = facts(params, dataset, method)
    folder, differs = open_folder(found)
    with locked(f"search-{folder.name}", f"another process runs the search {dataset} {method}"):
        if (done := _done(folder, params.search)) is not None:
            _track_late(params, dataset, method, folder, done)
            return done
        _say_how_it_starts(folder, differs, dataset, method)
        document = _search(params, dataset, method, backbone_of(params.backbone), space, folder)
        with contextlib.suppress(OSError):  # a full disk: the stage's own output says so
            write_json(folder / DONE, document)
        return document


def _track_late(params: Params, dataset: str, method: str, folder: Path, done: dict[str, Any]) -> None:
    """Tell MLflow of a search that ended while it did not answer."""
    if (folder / UNTRACKED).exists():
        with SearchRuns(params, dataset, method, folder) as runs:
            runs.finish(Ledger(folder / TRIALS).all(), done)


def _done(folder: Path, search: SearchSection) -> dict[str, Any] | None:
    try:
        document = read_json(folder / DONE, made_by="mmrl tune", keys=("search", "trials", "choice"))
    except UserError:
        return None
    del document["schema_version"]
    return document if document["search"] == search.model_dump() else None


def _say_how_it_starts(folder: Path, differs: list[str], dataset: str, method: str) -> None:
    known = len(list((folder / TRIALS).glob("*.json")))
    if known:
        print(f"search {dataset} {method}: going on from {known} trials that are begun or done", file=sys.stderr)
    elif differs:
        changed = ", ".join(differs)
        print(f"search {dataset} {method}: a new one, since another {changed} is asked for", file=sys.stderr)


def _settled(params: Params, dataset: str, backbone) -> tuple[dict[str, Any], Any]:
    """The document's head, and the search's data."""
    from flows.tuning.material import search_data

    data, templates = search_data(params, dataset, backbone)
    return {"search": params.search.model_dump(), "templates": templates, "template": data.template}, data


def _search(params: Params, dataset: str, method: str, backbone, space: Space, folder: Path) -> dict[str, Any]:
    from mmrl_core.search import partitions

    search, (head, data) = params.search, _settled(params, dataset, backbone)
    parts = partitions(data, search.partitions, search.seed)
    check_depths(params, space, backbone.depth)
    start = published_point(params, dataset, method, space, backbone.depth)
    points = _first_points(params, dataset, method, space, start, folder)
    plan = Plan(f"search {dataset} {method}", search, params.cluster, space, points, len(parts), folder / TRIALS)
    store = open_store(params, "tune")
    with SearchRuns(params, dataset, method, folder) as runs:
        records = run_trials(plan, PartitionScores(params, dataset, method, data, parts, store), runs)
        document = {**head, **_outcome(records, search, start)}
        runs.finish(records, document)
    _say_what_was_short(params, store)
    return document


def _first_points(
    params: Params, dataset: str, method: str, space: Space, start: dict[str, Any], folder: Path
) -> list[dict[str, Any]]:
    """Settled once: a resumed search must not begin with what other searches have found meanwhile."""
    try:
        return read_json(folder / POINTS, made_by="mmrl tune", keys=("points",))["points"]
    except UserError:
        others = earlier(facts(params, dataset, method)) if params.search.warm_start == "earlier" else []
        points = first_points(params.search, space, start, [Ledger(other / TRIALS) for other in others])
        with contextlib.suppress(OSError):
            write_json(folder / POINTS, {"points": points})
        return points


def _outcome(records: list[dict[str, Any]], search: SearchSection, start: dict[str, Any]) -> dict[str, Any]:
    """Trials and choice from the ledger's records; no times, so that a rerun writes the same bytes."""
    trials = [_trial(record) for record in records]
    chosen = choose(trials, search.objective, start)
    if chosen is None:
        first = records[0]["failure"] if records else "no worker could start it; see Ray's logs"
        raise UserError(f"all {len(trials)} trials of the search failed; the first: {first}")
    outcome = {"published": start, "trials": trials, "chosen": trials.index(chosen), "choice": chosen["params"],
               "ahead_of": comparisons(trials, chosen, search.objective, start)}  # fmt: skip
    if search.second_objective:
        outcome["pareto_front"] = pareto_front(trials, search.objective, search.second_objective)
    return outcome


def _trial(record: dict[str, Any]) -> dict[str, Any]:
    failure = {"failure": record["failure"]} if record["state"] in (FAILED, LOST) else {}
    means = overall(record["scores"]) if record["scores"] else {}
    return {"params": record["params"], "state": record["state"], **failure, **means, "scores": record["scores"]}


def _say_what_was_short(params: Params, store) -> None:
    if store is not None and store.is_full:  # the workers' own warnings stay in Ray's logs
        print(f"features.budget_gb {params.features.budget_gb:g} was used up: the search computed the rest each time; "
              f"raise it, or `mmrl clean`", file=sys.stderr)  # fmt: skip


def run_trials(plan: Plan, evaluate: Evaluate, runs: SearchRuns | None = None) -> list[dict[str, Any]]:
    """Run all trials on the plan's cluster; their records, in the order in which they were drawn."""
    import ray
    from ray import tune as ray_tune

    from flows.tuning.schedulers import scheduler
    from flows.tuning.watch import Watch

    search = plan.search
    cluster, needs = plan.cluster, Needs(plan.cluster.cpus_per_trial, plan.cluster.gpus_per_trial)
    with connected(cluster, needs), _storage(plan) as storage:
        ledger = on_this_node(Ledger).remote(plan.folder.absolute())
        trainable = ray_tune.with_parameters(
            run_trial, evaluate=evaluate, n_partitions=plan.n_partitions, ledger=ledger
        )
        resources = {"cpu": plan.cluster.cpus_per_trial, "gpu": plan.cluster.gpus_per_trial}
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(trainable, resources),
            param_space=param_space(search, plan.space),
            tune_config=ray_tune.TuneConfig(
                num_samples=1 if search.searcher == "grid" else search.trials,
                reuse_actors=True,
                search_alg=searcher(search, plan.points, _begun(plan)),
                scheduler=scheduler(search, plan.n_partitions),
            ),
            run_config=ray_tune.RunConfig(
                name="search",
                storage_path=str(storage),
                verbose=0,
                failure_config=ray_tune.FailureConfig(max_failures=RETRIES),
                callbacks=[Watch(plan.label, search.trials, plan.n_partitions, ledger, runs)],
            ),
        )
        configs = [result.config for result in tuner.fit()]
        drawn = list(dict.fromkeys(trial_key(config) for config in configs if config))
        records, trouble = ray.get([ledger.all.remote(), ledger.trouble.remote()])
    if trouble:
        print(f"warning: trials were not kept for a resume ({trouble}); free some space", file=sys.stderr)
    by_key = {trial_key(record["params"]): record for record in records}
    return [by_key[key] for key in drawn if key in by_key]


def _begun(plan: Plan) -> list[dict[str, Any]]:
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
