"""A search: resume or begin it, run its trials, and make its document."""

import contextlib
import sys
from pathlib import Path
from typing import Any

from flows.cluster.connection import Needs, connected, room
from flows.project.outputs import locked
from flows.project.resources import backbone_of
from flows.settings.params import Params
from flows.settings.sections import ClusterSection, SearchSection
from flows.tuning.data import search_data
from flows.tuning.identity import earlier, facts, open_folder
from flows.tuning.ledger import FAILED, LOST, Ledger
from flows.tuning.mlflow_runs import UNTRACKED, SearchRuns
from flows.tuning.space import Space, check_depths, first_points, open_dimensions, published_point
from flows.tuning.trainable import PartitionScores, Settled, settle
from flows.tuning.tuner import Plan, import_tune, run_trials
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, write_json
from mmrl_core.search.comparison import choose, comparisons, overall, pareto_front
from mmrl_core.search.partitions import partitions

DONE, TRIALS, POINTS = "done.json", "trials", "points.json"


REPORTED = ("log_likelihood", "log_likelihood_se", "harmonic_mean", "harmonic_mean_se")  # of the search's choice


def tune(params: Params, dataset: str, method: str, out: Path) -> dict[str, Any]:
    """The stage `tune`: settle the prompt template and the open settings, on labelled items of the trained classes."""
    found = search(params, dataset, method)
    head = {"dataset": dataset, "method": method, "shots": max(params.shots), "seeds": params.seeds}
    write_json(out, {**head, **found})
    best = found["trials"][found["chosen"]] if found["trials"] else {}
    scores = {name: best[name] for name in REPORTED if best}
    return {"trials": len(found["trials"]), "choice": found["choice"], "template": found["template"], **scores}


def search(params: Params, dataset: str, method: str) -> dict[str, Any]:
    """The search's document: all trials, which of them is chosen, its settings, and the prompt template.

    A search of the same settings and data goes on where it ended; one that is through costs nothing.
    """
    space = open_dimensions(params)
    if not space:
        return _settled(params, dataset)
    found = facts(params, dataset, method)
    folder, differs = open_folder(found)
    with locked(f"search-{folder.name}", f"another process runs the search {dataset} {method}"):
        if (done := _done(folder, params.search)) is not None:
            _track_late(params, dataset, method, folder, done)
            return done
        _say_how_it_starts(folder, differs, dataset, method)
        document = _search(params, dataset, method, space, folder)
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


def _settled(params: Params, dataset: str) -> dict[str, Any]:
    """The document of a search with nothing to search: which prompt template suits the base classes."""
    from flows.tuning.data import best_template, template_accuracies

    data, templates = search_data(params, dataset)
    accuracies = dict.fromkeys(templates)
    if len(templates) > 1:
        accuracies = template_accuracies(backbone_of(params.backbone), data, templates)
    head = {"search": params.search.model_dump(), "templates": accuracies, "template": best_template(accuracies)}
    return {**head, "trials": [], "choice": {}}


def _search(params: Params, dataset: str, method: str, space: Space, folder: Path) -> dict[str, Any]:
    """While a worker loads the backbone, what needs none is done here: this process never imports PyTorch."""
    search, cluster = params.search, params.cluster
    data, templates = search_data(params, dataset)
    parts = partitions(data, search.partitions, search.seed)
    with connected(cluster, trial_needs(cluster, search.concurrent, cores=1)):
        needs = trial_needs(cluster, search.concurrent, cores=room(Needs(1)))
        settling, weights = _start_settling(needs, params, dataset, method, data, templates, parts)
        with SearchRuns(params, dataset, method, folder) as runs:
            import_tune()
            settled = _settling_ended(settling)
            check_depths(params, space, settled.depth)
            start = published_point(params, dataset, method, space, settled.depth)
            points = _first_points(params, dataset, method, space, start, folder)
            label, data = f"search {dataset} {method}", data._replace(template=settled.template)
            plan = Plan(label, search, needs, space, points, len(parts), folder / TRIALS, settled.batch)
            evaluate = PartitionScores(params, dataset, method, data, settled.parts, weights)
            records = run_trials(plan, evaluate, runs)
            head = {"search": search.model_dump(), "templates": settled.templates, "template": settled.template}
            document = {**head, **_outcome(records, search, start)}
            runs.finish(records, document)
    return document


def trial_needs(cluster: ClusterSection, at_once: int | None, cores: int) -> Needs:
    """What a trial takes of a cluster of so many cores, of which `at_once` run side by side; null: as many as can."""
    shared = cores // at_once if cluster.address == "local" and at_once else 1
    return Needs(cluster.cpus_per_trial or max(1, shared), cluster.gpus_per_trial)


def _start_settling(needs: Needs, *subject):
    """`settle` in a process which the trials then go on in: references to both that it returns."""
    import ray

    return ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, num_returns=2)(settle).remote(*subject)


def _settling_ended(reference) -> Settled:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:  # its process died, again and again
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no worker could load the backbone ({reason}); see whether the node has memory for it"
        ) from None


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
