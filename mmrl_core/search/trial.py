"""A trial of a search, as the ledger keeps it while the search runs, and as the search's file has it in the end."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, cast, get_args

from pydantic import Field
from typing_extensions import TypedDict

from mmrl_core.errors import Damaged
from mmrl_core.files import read_json

Objective = Literal["log_likelihood", "harmonic_mean"]
Cost = Literal["trainable_parameters", "step_time"]
State = Literal["running", "complete", "stopped", "failed", "lost"]  # lost: its process died, again and again
TrialSettings = dict[str, Annotated[float, Field(allow_inf_nan=False)] | str]  # by dotted key of `adapter` or `train`
Distribution = dict[str, list[Any]]  # `choice`: its values; `uniform` or `loguniform`: the bounds
Space = dict[str, Distribution]  # by dotted key of `adapter` or `train`
Scores = dict[str, Any]  # of one partition: numbers by name, and `losses`, the training loss of every epoch


class Record(TypedDict):
    """A trial as the ledger keeps it; `scores` and `seconds` have one item a partition."""

    key: str  # the name of its file, which holds all the others
    number: int  # in the order in which the trials began
    params: TrialSettings
    scores: list[Scores]
    seconds: list[float]
    state: State
    failure: str | None


class Means(TypedDict, total=False):
    """Means over the partitions, and standard errors (`_se`) of the objectives; empty where no partition was seen."""

    log_likelihood: float
    log_likelihood_se: float
    harmonic_mean: float
    harmonic_mean_se: float
    seen_accuracy: float
    unseen_accuracy: float
    step_time: float
    trainable_parameters: float


class Trial(Means):
    """A trial as trials are compared, and as the search's file has them."""

    params: TrialSettings
    state: NotRequired[State]
    failure: NotRequired[str | None]  # where it failed or was lost
    scores: list[Scores]


class Lead(TypedDict):
    """How far the chosen trial is ahead of another: a mean over the partitions that both saw, its standard error."""

    trial: int  # index of the other
    difference: float
    se: float


class SearchDocument(TypedDict):
    """What a search comes to. Without a trial, what a choice between trials gives is missing."""

    search: dict[str, Any]  # its section of params.yaml
    templates: dict[str, float | None]  # zero-shot accuracies by prompt template
    template: str
    published: NotRequired[TrialSettings]
    trials: list[Trial]
    chosen: NotRequired[int]  # an index of `trials`
    choice: TrialSettings
    ahead_of: NotRequired[dict[str, Lead | None]]
    pareto_front: NotRequired[list[int]]  # indices of `trials`


class SearchFile(SearchDocument):
    """The file that the stage `tune` writes."""

    dataset: str
    method: str
    shots: int
    seeds: list[int]


def read_search_file(
    path: Path, keys: Iterable[str], shape: type = SearchFile, made_by: str = "mmrl tune"
) -> SearchFile:
    """A search's file, which has `keys` and is of `shape`. Raises as `read_json`, and Damaged where it names a trial
    that is not there, or its trials do not compare."""
    search = cast(SearchFile, read_json(path, made_by=made_by, keys=keys, shape=shape))
    if problem := next(_problems(search), None):
        raise Damaged(f"{path}: {problem}; run `{made_by}` again")
    return search


def _problems(search: SearchFile) -> Iterator[str]:
    trials, objectives = search.get("trials", []), get_args(Objective)
    if "search" in search and search["search"].get("objective") not in objectives:
        yield f"search.objective is none of {', '.join(objectives)}"
    if not trials:
        return
    leads = [lead["trial"] for lead in search.get("ahead_of", {}).values() if lead]
    for index in [search.get("chosen", -1), *leads, *search.get("pareto_front", [])]:
        if not 0 <= index < len(trials) or not trials[index]["scores"]:
            yield f"it names a trial {index}, which is not there or saw nothing"
    means = {mean for name in objectives for mean in (name, f"{name}_se")}
    for index, trial in enumerate(trials):
        if trial["params"].keys() != trials[0]["params"].keys() or (trial["scores"] and not means <= trial.keys()):
            yield f"trial {index} does not compare with the first one"
