"""A search: resume or begin it, run its trials, and make its document."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import TypedDict

from flows.cluster.connection import Needs, connected, room
from flows.project.outputs import locked
from flows.project.resources import refuse_absent
from flows.settings.params import Params
from flows.settings.sections import ClusterSection, SearchSection
from flows.tuning.data import best_template, measured_templates, search_data
from flows.tuning.identity import TRIALS, Search, earlier, facts, open_folder
from flows.tuning.ledger import Ledger
from flows.tuning.mlflow_runs import UNTRACKED, SearchRuns
from flows.tuning.space import check_depths, first_points, open_dimensions, published_point
from flows.tuning.trainable import PartitionScores, Settled, settle
from flows.tuning.tuner import Plan, import_tune, run_trials
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, write_json
from mmrl_core.search.choice import choose
from mmrl_core.search.comparison import compared, comparisons, pareto_front
from mmrl_core.search.partitions import partitions
from mmrl_core.search.trial import Record, SearchDocument, Space, TrialSettings, read_search_file

if TYPE_CHECKING:
    from ray import ObjectRef

DONE, POINTS = "done.json", "points.json"
DONE_KEYS = ("search", "templates", "template", "trials", "choice")
REPORTED = ("log_likelihood", "log_likelihood_se", "harmonic_mean", "harmonic_mean_se")  # of the search's choice


class Points(TypedDict):
    """What a search begins with."""

    points: list[TrialSettings]


def tune(params: Params, dataset: str, method: str, out: Path) -> dict[str, Any]:
    """The stage `tune`: settle the prompt template and the open settings, on labelled items of the trained classes."""
    document = run_search(params, dataset, method)
    head = {"dataset": dataset, "method": method, "shots": max(params.shots), "seeds": params.seeds}
    write_json(out, {**head, **document})
    best: dict[str, Any] = {**document["trials"][document["chosen"]]} if document["trials"] else {}
    scores = {name: best[name] for name in REPORTED if best}
    return {"trials": len(document["trials"]), "choice": document["choice"], "template": document["template"], **scores}


def run_search(params: Params, dataset: str, method: str) -> SearchDocument:
    """The search's document: all trials, which of them is chosen, its settings, and the prompt template.

    A search of the same settings and data goes on where it ended; one that is through costs nothing.
    """
    space = open_dimensions(params)
    if not space:
        return _template_alone(params, dataset)
    identity = facts(params, dataset, method)
    folder, differs = open_folder(identity)
    search = Search(params, dataset, method, space, identity, folder)
    with locked(f"search-{folder.name}", f"another process runs the {search.label}"):
        if (done := _done(search)) is not None:
            _track_late(search, done)
            return done
        _say_how_it_starts(search, differs)
        document = _run(search)
        with contextlib.suppress(OSError):  # a full disk: the stage's own output says so
            write_json(folder / DONE, cast(dict[str, Any], document))
        return document


def _track_late(search: Search, done: SearchDocument) -> None:
    """Tell MLflow of a search that ended while it did not answer."""
    if (search.folder / UNTRACKED).exists():
        with SearchRuns(search) as runs:
            runs.finish(Ledger(search.trials).all(), done)


def _done(search: Search) -> SearchDocument | None:
    """What the search came to, where it is through."""
    try:
        document: dict[str, Any] = {**read_search_file(search.folder / DONE, DONE_KEYS, SearchDocument)}
    except UserError:
        return None
    del document["schema_version"]
    return cast(SearchDocument, document) if document["search"] == search.params.search.model_dump() else None


def _say_how_it_starts(search: Search, differs: list[str]) -> None:
    known = len(list(search.trials.glob("*.json")))
    if known:
        print(f"{search.label}: going on from {known} trials that are begun or done", file=sys.stderr)
    elif differs:
        changed = ", ".join(differs)
        print(f"{search.label}: a new one, since another {changed} is asked for", file=sys.stderr)


def _template_alone(params: Params, dataset: str) -> SearchDocument:
    """The document of a search with nothing to search: which prompt template suits the base classes."""
    accuracies = measured_templates(params, dataset)
    return {"search": params.search.model_dump(), "templates": accuracies, "template": best_template(accuracies),
            "trials": [], "choice": {}}  # fmt: skip


def _run(search: Search) -> SearchDocument:
    """While a worker loads the backbone, what needs none is done here: this process imports no PyTorch, but to look for
    a GPU that the settings name. Raises UserError where that is not there: the training would be refused after hours.
    """
    params, dataset, method = search.params, search.dataset, search.method
    refuse_absent(params)
    section, cluster = params.search, params.cluster
    data, templates = search_data(params, dataset)
    parts = partitions(data, section.partitions, section.seed)
    with connected(cluster, trial_needs(cluster, section.concurrent, cores=1)):
        needs = trial_needs(cluster, section.concurrent, cores=room(Needs(1)))
        settling, weights = _start_settling(needs, params, dataset, method, data, templates, parts)
        with SearchRuns(search) as runs:
            import_tune()
            settled = _settling_ended(settling)
            check_depths(params, search.space, settled.depth)
            start = published_point(params, dataset, method, search.space, settled.depth)
            points = _first_points(search, start)
            plan = Plan(search.label, section, needs, search.space, points, len(parts), search.trials, settled.batch)
            data = data._replace(template=settled.template)
            evaluate = PartitionScores(params, dataset, method, data, settled.parts, weights)
            records = run_trials(plan, evaluate, runs)
            document = _document(records, section, search.space, settled, start)
            runs.finish(records, document)
    return document


def trial_needs(cluster: ClusterSection, at_once: int | None, cores: int) -> Needs:
    """What a trial takes of a cluster of so many cores, of which `at_once` run side by side; null: as many as can."""
    shared = cores // at_once if cluster.address == "local" and at_once else 1
    return Needs(cluster.cpus_per_trial or max(1, shared), cluster.gpus_per_trial)


def _start_settling(needs: Needs, *subject: object) -> "list[ObjectRef]":
    """`settle` in a process which the trials then go on in: references to both that it returns."""
    import ray

    return ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, num_returns=2)(settle).remote(*subject)


def _settling_ended(reference: "ObjectRef") -> Settled:
    """What `settle` returned; raises UserError for what a person can mend."""
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


def _first_points(search: Search, start: TrialSettings) -> list[TrialSettings]:
    """Settled once: a resumed search must not begin with what other searches have found meanwhile."""
    try:
        return read_json(search.folder / POINTS, made_by="mmrl tune", keys=("points",), shape=Points)["points"]
    except UserError:
        section = search.params.search
        others = earlier(search.facts) if section.warm_start == "earlier" else []
        points = first_points(section, search.space, start, [Ledger(other / TRIALS) for other in others])
        with contextlib.suppress(OSError):
            write_json(search.folder / POINTS, {"points": points})
        return points


def _document(
    records: list[Record], search: SearchSection, space: Space, settled: Settled, start: TrialSettings
) -> SearchDocument:
    """Trials and choice from the ledger's records; no times, so that a rerun writes the same bytes."""
    trials = [compared(record) for record in records]
    chosen = choose(trials, search.objective, start, space)
    if chosen is None:
        first = records[0]["failure"] if records else "no worker could start it; see Ray's logs"
        raise UserError(f"all {len(trials)} trials of the search failed; the first: {first}")
    document: SearchDocument = {
        "search": search.model_dump(),
        "templates": settled.templates,
        "template": settled.template,
        "published": start,
        "trials": trials,
        "chosen": trials.index(chosen),
        "choice": chosen["params"],
        "ahead_of": comparisons(trials, chosen, search.objective, start),
    }
    if search.second_objective:
        document["pareto_front"] = pareto_front(trials, search.objective, search.second_objective)
    return document
