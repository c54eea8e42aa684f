"""What runs in a Ray worker: settings are trained and scored on the partitions that the ledger does not have yet."""

import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict, cast

from flows.settings.params import Params
from flows.tuning.ledger import LedgerActor
from mmrl_core.errors import UserError
from mmrl_core.rounding import DIGITS
from mmrl_core.search.comparison import COSTS, OBJECTIVES, ROUND, overall
from mmrl_core.search.partitions import Partition, SearchData
from mmrl_core.search.trial import Record, Scores, TrialSettings

if TYPE_CHECKING:
    from ray import ObjectRef

    from mmrl_core.clip.backbone import Backbone
    from mmrl_core.clip.feature_store import FeatureStore
    from mmrl_core.config import Resolved
    from mmrl_core.data.pictures import Pictures

AT_ONCE = 4  # settings at most that are proposed before any of them is scored: the first four are drawn at random
TOLD = 2  # digits of an objective: standard errors of its mean over partitions are of the order of hundredths
PARTITIONS = "partitions"  # in what Tune is told: how many a trial has seen
WORST: dict[str, Any] = {**dict.fromkeys(OBJECTIVES, -1e9), **dict.fromkeys(COSTS, 1e9), "scores": [], PARTITIONS: 0}


class TrialBatch(TypedDict):
    """The config of a trial of Ray Tune, in which several of the search's trials are trained together."""

    settings: list[TrialSettings]  # of each
    partitions: int  # how many they are to have seen after it
    stride: int  # how many they see before Tune's scheduler is asked whether to go on


class Piece(NamedTuple):
    """Settings, and the index of a partition that they are to be scored on."""

    settings: TrialSettings
    partition: int


class Evaluate(Protocol):
    """Scores pieces: in any order the place of each with its scores, or with why its settings cannot be trained."""

    @property
    def trouble(self) -> str | None:
        """What the person should know of this process."""

    def __call__(self, pieces: list[Piece]) -> Iterable[tuple[int, Scores | UserError]]: ...


def run_trial(config: TrialBatch, evaluate: Evaluate, ledger: LedgerActor) -> None:
    """Ray Tune's trainable: enter every partition's scores in the ledger and report them.

    Settings that cannot be trained fail alone, not the search; whatever else goes wrong is tried again by Ray.
    """
    from ray import tune

    seen, going = 0, True
    records = [ledger.open(settings) for settings in config["settings"]]
    while going and seen < config["partitions"]:
        seen = min(config["partitions"], seen + config["stride"])
        if missing := _missing(records, seen):
            _enter(missing, evaluate, ledger)
            records = [ledger.open(settings) for settings in config["settings"]]
        going = any(len(record["scores"]) >= seen for record in records)
        if trouble := evaluate.trouble:
            ledger.warn(trouble)
        tune.report(_report(records, seen))  # also where all failed: searchers and schedulers want to be told something


def _missing(records: list[Record], seen: int) -> list[Piece]:
    """What the trials that go on lack to have seen so many partitions."""
    going = [record for record in records if record["state"] == "running"]
    return [Piece(record["params"], index) for record in going for index in range(len(record["scores"]), seen)]


def _enter(pieces: list[Piece], evaluate: Evaluate, ledger: LedgerActor) -> None:
    """Every piece's scores into the ledger, as they come."""
    start = time.perf_counter()
    for place, scores in evaluate(pieces):
        settings, index = pieces[place]
        if isinstance(scores, UserError):
            ledger.end(settings, "failed", str(scores))
        else:
            ledger.add(settings, index, scores, time.perf_counter() - start)
        start = time.perf_counter()


def _report(records: list[Record], seen: int) -> dict[str, Any]:
    """Of the first settings, and of each; of a search that is resumed, as it was told then."""
    each = [one_report(record["scores"][:seen]) for record in records]
    return {**each[0], "each": each}


def one_report(scores: list[Scores]) -> dict[str, Any]:
    """What a searcher is told of a trial."""
    if not scores:
        return WORST
    means = {name: round(value, DIGITS) for name, value in cast(dict[str, float], overall(scores)).items()}
    told: dict[str, Any] = {name: round(means[name], TOLD) for name in OBJECTIVES}
    return {**means, **told, "scores": list(scores), PARTITIONS: len(scores)}  # rounded: searchers go by their order


class Settled(NamedTuple):
    """What is settled with the backbone, before the first trial."""

    templates: dict[str, float | None]  # zero-shot accuracies
    template: str
    parts: list[Partition]  # the hardest first
    depth: int  # of the backbone
    batch: int  # of settings whose first partitions take their steps together


def settle(
    params: Params, dataset: str, method: str, data: SearchData, templates: list[str], parts: list[Partition]
) -> tuple[Settled, dict[str, Any] | None]:
    """What is settled before the first trial, and the weights where several processes are to share them, else None.

    Runs in a process that trials will run in.
    """
    from flows.project.resources import trial_backbone
    from flows.settings.resolve import resolve
    from flows.tuning.data import best_template, template_accuracies
    from mmrl_core.search.objective import hardest_first
    from mmrl_core.training.fit import most_together

    backbone = trial_backbone(params)
    accuracies = template_accuracies(backbone, data, templates)
    template = best_template(accuracies)
    data = data._replace(template=template)
    ordered = hardest_first(backbone, data, parts, store_of(params))
    published = resolve(params, dataset, method, data.seeds[0], backbone.depth, {})
    room = most_together(backbone, published.adapter, published.train.batch_size)
    settled = Settled(accuracies, template, ordered, backbone.depth, max(1, min(AT_ONCE, room // ROUND)))
    shared = params.search.concurrent != 1 and backbone.device.type == "cpu"
    return settled, backbone.arrays() if shared else None


class PartitionScores:
    """Evaluate settings by training: what a real search's trials do. Travels to the workers by value."""

    def __init__(
        self, params: Params, dataset: str, method: str, data: SearchData, parts: list[Partition],
        weights: "ObjectRef | None" = None,
    ):  # fmt: skip
        """`weights`: a reference to those that all processes of a node share, or to None."""
        self.params, self.dataset, self.method = params, dataset, method
        self.data, self.parts, self.weights = data, parts, weights

    def __call__(self, pieces: list[Piece]) -> Iterable[tuple[int, Scores | UserError]]:
        from flows.project.resources import trial_backbone
        from flows.settings.resolve import resolve
        from mmrl_core.search.objective import partition_scores

        params, data = self.params, self.data
        backbone = trial_backbone(params)
        if self.weights is not None:
            share_weights(backbone, self.weights)

        def resolved(settings: TrialSettings) -> "Resolved":
            return resolve(params, self.dataset, self.method, data.seeds[0], backbone.depth, settings)

        wanted = [(resolved(settings), self.parts[index]) for settings, index in pieces]
        for place, scores in partition_scores(backbone, wanted, data, store_of(params), pictures()):
            if isinstance(scores, dict) and params.search.second_objective != "step_time":
                del scores["step_time"]  # no other run would measure the same
            yield place, scores

    @property
    def trouble(self) -> str | None:
        """What the person should know of this process."""
        store, budget = store_of(self.params), self.params.features.budget_gb
        if store is None or not store.is_full:
            return None
        short = "the search computed the rest each time; raise it, or `mmrl clean`"
        return f"features.budget_gb {budget:g} was used up: {short}"


_sharing: set[int] = set()  # backbones whose weights lie in the node's shared memory


def share_weights(backbone: "Backbone", reference: "ObjectRef") -> None:
    """Let this process's backbone use the weights that Ray's object store holds once a node."""
    import ray

    if id(backbone) in _sharing:
        return
    _sharing.add(id(backbone))
    arrays = ray.get(reference)
    if arrays is not None and backbone.device.type == "cpu":
        backbone.adopt(arrays)


@cache
def pictures() -> "Pictures":
    """This process's decoded images: all its trials train on the same ones."""
    from mmrl_core.data.pictures import Pictures

    return Pictures()


_stores: "dict[str, FeatureStore | None]" = {}


def store_of(params: Params) -> "FeatureStore | None":
    """This process's store of frozen features, in a folder of the node's own where the project folder is not seen."""
    from flows.project.resources import open_store

    key = params.features.model_dump_json()
    if key not in _stores:
        store = open_store(params, "tune")
        if store is not None and not store.folder.parent.is_dir():
            store.folder = Path(gettempdir()) / "mmrl-features"
        _stores[key] = store
    return _stores[key]
