"""A trial in a Ray worker: settings on the partitions that they still lack, each from the ledger where it is there."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

from flows.settings.params import Params
from mmrl_core.errors import UserError
from mmrl_core.search.comparison import COSTS, OBJECTIVES, ROUND, overall
from mmrl_core.search.partitions import Partition, SearchData

AT_ONCE = 4  # settings at most that are proposed before any of them is scored: the first four are drawn at random
PARTITIONS = "partitions"  # in what Tune is told: how many a trial has seen
WORST = {**dict.fromkeys(OBJECTIVES, -1e9), **dict.fromkeys(COSTS, 1e9), "scores": [], PARTITIONS: 0}
Settings = dict[str, Any]
Piece = tuple[Settings, int]  # and the index of a partition
# Pieces to the places of those that are done, each with its scores or why its settings cannot be trained.
Evaluate = Callable[[list[Piece]], Iterable[tuple[int, dict[str, Any] | UserError]]]


class Job(NamedTuple):
    """What a process is handed at a time: settings, how many partitions they are to have seen after it, and how many
    they see before Tune's scheduler is asked whether to go on."""

    settings: list[Settings]
    partitions: int
    stride: int

    def config(self) -> dict[str, Any]:
        """As Ray Tune takes it."""
        return self._asdict()


def run_trial(config: dict[str, Any], evaluate: Evaluate, ledger) -> None:
    """Enter every partition's scores and report them; `ledger` is the actor that keeps them.

    Settings that cannot be trained fail alone, not the search; whatever else goes wrong is tried again by Ray.
    """
    import ray
    from ray import tune

    job, seen, going = Job(**config), 0, True
    records = [ray.get(ledger.open.remote(settings)) for settings in job.settings]
    while going and seen < job.partitions:
        seen = min(job.partitions, seen + job.stride)
        if missing := _missing(records, seen):
            _enter(missing, evaluate, ledger)
            records = [ray.get(ledger.open.remote(settings)) for settings in job.settings]
        going = any(len(record["scores"]) >= seen for record in records)
        if trouble := getattr(evaluate, "trouble", None):
            ray.get(ledger.warn.remote(trouble))
        tune.report(_report(records, seen))  # also where all failed: searchers and schedulers want to be told something


def _missing(records: list[dict], seen: int) -> list[Piece]:
    """What the trials that go on lack to have seen so many partitions."""
    going = [record for record in records if record["state"] == "running"]
    return [(record["params"], index) for record in going for index in range(len(record["scores"]), seen)]


def _enter(pieces: list[Piece], evaluate: Evaluate, ledger) -> None:
    """Every piece's scores into the ledger, as they come."""
    import ray

    start = time.perf_counter()
    for place, found in evaluate(pieces):
        settings, index = pieces[place]
        if isinstance(found, UserError):
            ray.get(ledger.end.remote(settings, "failed", str(found)))
        else:
            ray.get(ledger.add.remote(settings, index, found, time.perf_counter() - start))
        start = time.perf_counter()


def _report(records: list[dict], seen: int) -> dict[str, Any]:
    """Of the first settings, and of each; of a search that is resumed, as it was told then."""
    each = [_one_report(record["scores"][:seen]) for record in records]
    return {**each[0], "each": each}


def _one_report(scores: list[dict]) -> dict[str, Any]:
    return {**overall(scores), "scores": list(scores), PARTITIONS: len(scores)} if scores else WORST


class Settled(NamedTuple):
    """What the backbone says before the first trial."""

    templates: dict[str, float | None]  # zero-shot accuracies
    template: str
    parts: list[Partition]  # the hardest first
    depth: int  # of the backbone
    batch: int  # of settings whose first partitions take their steps together


def settle(
    params: Params, dataset: str, method: str, data: SearchData, templates: list[str], parts: list[Partition]
) -> tuple[Settled, dict[str, Any] | None]:
    """In a process that trials will run in. Where others will run beside it, with the weights for all to share."""
    from flows.project.resources import backbone_of
    from flows.settings.resolve import resolve
    from flows.tuning.data import best_template, template_accuracies
    from mmrl_core.search.objective import hardest_first
    from mmrl_core.training.fit import most_together

    backbone = backbone_of(params.backbone)
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
        self, params: Params, dataset: str, method: str, data: SearchData, parts: list[Partition], weights=None
    ):
        """`weights`: a reference to those that all processes of a node share, or to None."""
        self.params, self.dataset, self.method = params, dataset, method
        self.data, self.parts, self.weights = data, parts, weights

    def __call__(self, pieces: list[Piece]) -> Iterable[tuple[int, dict[str, Any] | UserError]]:
        from flows.project.resources import backbone_of
        from flows.settings.resolve import resolve
        from mmrl_core.search.objective import partition_scores

        params, data = self.params, self.data
        backbone = backbone_of(params.backbone)
        if self.weights is not None:
            share_weights(backbone, self.weights)

        def resolved(settings: Settings):
            return resolve(params, self.dataset, self.method, data.seeds[0], backbone.depth, settings)

        wanted = [(resolved(settings), self.parts[index]) for settings, index in pieces]
        for place, found in partition_scores(backbone, wanted, data, store_of(params)):
            if isinstance(found, dict) and params.search.second_objective != "step_time":
                del found["step_time"]  # no other run would measure the same
            yield place, found

    @property
    def trouble(self) -> str | None:
        """What the person should know of this process."""
        store, budget = store_of(self.params), self.params.features.budget_gb
        if store is None or not store.is_full:
            return None
        short = "the search computed the rest each time; raise it, or `mmrl clean`"
        return f"features.budget_gb {budget:g} was used up: {short}"


_sharing: set[int] = set()  # backbones whose weights lie in the node's shared memory


def share_weights(backbone, reference) -> None:
    """Let this process's backbone have the weights that Ray's object store holds once a node."""
    import ray

    if id(backbone) in _sharing:
        return
    _sharing.add(id(backbone))
    arrays = ray.get(reference)
    if arrays is not None and backbone.device.type == "cpu":
        backbone.adopt(arrays)


_stores: dict[str, Any] = {}


def store_of(params: Params):
    """This process's store of frozen features, in a folder of the node's own where the project folder is not seen."""
    from flows.project.resources import open_store

    key = params.features.model_dump_json()
    if key not in _stores:
        store = open_store(params, "tune")
        if store is not None and not store.folder.parent.is_dir():
            store.folder = Path(gettempdir()) / "mmrl-features"
        _stores[key] = store
    return _stores[key]
