"""The search's choice against the published setting, on seeds and divisions of the classes that it did not use."""

from typing import Any

from flows.project import paths
from flows.project.progress import progress
from flows.settings.params import Params
from flows.tuning.data import search_data
from flows.tuning.trainable import PartitionScores
from mmrl_core.errors import UserError
from mmrl_core.files import read_json
from mmrl_core.search.comparison import comparisons, overall
from mmrl_core.search.partitions import fresh_partitions, partitions

SCORES = ("log_likelihood", "log_likelihood_se", "harmonic_mean", "harmonic_mean_se")


def confirm(params: Params, dataset: str, method: str, seeds: list[int]) -> dict[str, Any]:
    """Scores of both settings, and how far the choice is ahead in both objectives (mean of pairs, standard error).

    The few-shot sets of these seeds must be prepared. Raises UserError where one of them was searched on.
    """
    path = paths.search(dataset, method)
    found = read_json(path, made_by="mmrl tune", keys=("seeds", "choice", "trials"))
    if used := sorted(set(seeds) & set(found["seeds"])):
        raise UserError(f"seed {used[0]} was searched on ({path}); name others, which the search did not see")
    if not found["trials"]:
        raise UserError(f"{path} has no trials: there is no choice to confirm")
    fresh = params.model_copy(
        update={"seeds": seeds, "search": params.search.model_copy(update={"seed": params.search.seed + 1})}
    )
    data = search_data(fresh, dataset)[0]._replace(template=found["template"])
    used = partitions(data._replace(seeds=found["seeds"]), found["search"]["partitions"], found["search"]["seed"])
    parts = fresh_partitions(data, params.search.partitions, fresh.search.seed, used)
    evaluate, count = PartitionScores(fresh, dataset, method, data, parts), len(parts)
    settings = {"choice": found["choice"], "published": found["published"]}
    pieces = [(one, index) for one in settings.values() for index in range(count)]
    scores: dict[int, dict[str, Any]] = {}
    with progress(f"confirm {dataset} {method}", len(pieces), what="partition") as bar:
        for place, one in evaluate(pieces):
            if isinstance(one, UserError):
                raise one
            scores[place] = one
            bar(len(scores))
    by_setting = [[scores[place * count + index] for index in range(count)] for place in range(len(settings))]
    trials = [
        {"params": one, **overall(own), "scores": own} for one, own in zip(settings.values(), by_setting, strict=True)
    ]
    ahead = {
        objective: comparisons(trials, trials[0], objective, found["published"])["published"]
        for objective in ("log_likelihood", "harmonic_mean")
    }
    scores = {name: {score: trial[score] for score in SCORES} for name, trial in zip(settings, trials, strict=True)}
    return {"divisions": count, **scores, "ahead": ahead, "same": found["choice"] == found["published"]}
