"""A trial in a Ray worker: every partition in turn, each from the ledger where it is there already."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrl_core.choice import COSTS, OBJECTIVES, overall
from mmrl_core.config import Params
from mmrl_core.errors import UserError

WORST = {**dict.fromkeys(OBJECTIVES, -1e9), **dict.fromkeys(COSTS, 1e9), "scores": []}
Evaluate = Callable[[dict[str, Any], int], dict[str, Any]]  # settings and the index of a partition to its scores


def run_trial(config: dict[str, Any], evaluate: Evaluate, n_partitions: int, ledger) -> None:
    """Report all scores so far after every partition; `ledger` is the actor that keeps them.

    A partition that cannot be computed ends the trial as failed, not the search.
    """
    import ray
    from ray import tune

    from flows.tuning.ledger import FAILED, RUNNING

    record = ray.get(ledger.open.remote(config))
    scores, state = record["scores"], record["state"]
    for index in range(len(scores)):
        tune.report(_report(scores[: index + 1]))
    while len(scores) < n_partitions and state == RUNNING:
        start = time.perf_counter()
        try:
            found = evaluate(config, len(scores))
        except Exception as error:
            state = ray.get(ledger.end.remote(config, FAILED, _reason(error)))["state"]
            break
        ray.get(ledger.add.remote(config, len(scores), found, time.perf_counter() - start))
        scores = [*scores, found]
        tune.report(_report(scores))
    if not scores:
        tune.report(WORST)  # searchers and schedulers want to be told something


def _report(scores: list[dict]) -> dict[str, Any]:
    return {**overall(scores), "scores": list(scores)}


def _reason(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


class PartitionScores:
    """Evaluate settings by training: what a real search's trials do. Travels to the workers by value."""

    def __init__(self, params: Params, dataset: str, method: str, data, store):
        self.params, self.dataset, self.method, self.data, self.store = params, dataset, method, data, store

    def __call__(self, config: dict[str, Any], index: int) -> dict[str, Any]:
        from flows.backbones import backbone_of
        from mmrl_core.presets import resolve
        from mmrl_core.search import partition_scores, partitions

        params, data = self.params, self.data
        backbone = backbone_of(params.backbone)
        settings = resolve(params, self.dataset, self.method, data.seeds[0], backbone.depth, config)
        partition = partitions(data, params.search.partitions, params.search.seed)[index]
        scores = partition_scores(backbone, settings, data, partition, on_this_node(self.store))
        if params.search.second_objective != "step_time":
            del scores["step_time"]  # no other run would measure the same
        return scores


def on_this_node(store):
    """The store of frozen features, in a folder of the node's own where the project folder is not seen."""
    if store is not None and not store.folder.parent.is_dir():
        store.folder = Path(tempfile.gettempdir()) / "mmrl-features"
    return store
