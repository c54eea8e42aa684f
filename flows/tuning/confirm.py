"""The search's choice against the published setting, on seeds and divisions of the classes that it did not use."""

from typing import Any

from flows.project import paths
from flows.project.progress import progress
from flows.settings.params import Params
from flows.tuning.data import search_data
from flows.tuning.trainable import PartitionScores, Piece
from mmrl_core.errors import UserError
from mmrl_core.search.comparison import OBJECTIVES, comparisons, overall
from mmrl_core.search.partitions import fresh_partitions, partitions
from mmrl_core.search.trial import Scores, SearchFile, Trial, TrialSettings, read_search_file

SCORES = ("log_likelihood", "log_likelihood_se", "harmonic_mean", "harmonic_mean_se")


def confirm(params: Params, dataset: str, method: str, seeds: list[int]) -> dict[str, Any]:
    """Scores of both settings, and how far the choice is ahead in both objectives (mean of pairs, standard error).

    The few-shot sets of these seeds must be prepared. Raises UserError where one of them was searched on.
    """
    searched = _read_search(dataset, method, seeds)
    section = params.search.model_copy(update={"seed": params.search.seed + 1})
    fresh = params.model_copy(update={"seeds": seeds, "search": section})
    data = search_data(fresh, dataset)[0]._replace(template=searched["template"])
    known = data._replace(seeds=searched["seeds"])
    used = partitions(known, searched["search"]["partitions"], searched["search"]["seed"])
    parts = fresh_partitions(data, params.search.partitions, section.seed, used)
    evaluate = PartitionScores(fresh, dataset, method, data, parts)
    settings = {"choice": searched["choice"], "published": searched["published"]}
    trials = _trials(list(settings.values()), evaluate, len(parts), f"confirm {dataset} {method}")
    ahead = {
        objective: comparisons(trials, trials[0], objective, searched["published"])["published"]
        for objective in OBJECTIVES
    }
    scores = {
        name: {score: dict(trial)[score] for score in SCORES} for name, trial in zip(settings, trials, strict=True)
    }
    same = searched["choice"] == searched["published"]
    return {"divisions": len(parts), **scores, "ahead": ahead, "same": same}


def _read_search(dataset: str, method: str, seeds: list[int]) -> SearchFile:
    """The finished search's file. Raises UserError where it saw one of the seeds, or chose nothing."""
    path = paths.search(dataset, method)
    keys = ("seeds", "choice", "trials", "search", "template")
    searched = read_search_file(path, keys, made_by=paths.search_command(dataset, method))
    if used := sorted(set(seeds) & set(searched["seeds"])):
        raise UserError(f"seed {used[0]} was searched on ({path}); name others, which the search did not see")
    if not searched["trials"]:
        raise UserError(f"{path} has no trials: there is no choice to confirm")
    return searched


def _trials(settings: list[TrialSettings], evaluate: PartitionScores, n_partitions: int, label: str) -> list[Trial]:
    """A trial of each settings on every partition."""
    pieces = [Piece(params, index) for params in settings for index in range(n_partitions)]
    scores: dict[int, Scores] = {}
    with progress(label, len(pieces), what="partition") as report:
        for place, result in evaluate(pieces):
            if isinstance(result, UserError):
                raise result
            scores[place] = result
            report(len(scores))
    each = [[scores[row * n_partitions + index] for index in range(n_partitions)] for row in range(len(settings))]
    return [{"params": params, **overall(own), "scores": own} for params, own in zip(settings, each, strict=True)]
