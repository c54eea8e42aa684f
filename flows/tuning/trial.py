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

    Settings that cannot be trained fail alone, not the search; whatever else goes wrong is tried again by Ray.
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
        except UserError as error:
            state = ray.get(ledger.end.remote(config, FAILED, str(error)))["state"]
            break
        ray.get(ledger.add.remote(config, len(scores), found, time.perf_counter() - start))
        scores = [*scores, found]
        tune.report(_report(scores))
    if not scores:
        tune.report(WORST)  # searchers and schedulers want to be told something


def _report(scores: list[dict]) -> dict[str, Any]:
    return {**overall(scores), "scores": list(scores)}


class PartitionScores:
    """Evaluate settings by training: what a real search's trials do. Travels to the workers by value."""

    def __init__(self, params: Params, dataset: str, method: str, data, parts: list, store):
        self.params, self.dataset, self.method = params, dataset, method
        self.data, self.parts, self.store = data, parts, store

    def __call__(self, config: dict[str, Any], index: int) -> dict[str, Any]:
        from flows.backbones import backbone_of
        from mmrl_core.presets import resolve
        from mmrl_core.search import partition_scores

        params, data = self.params, self.data
        backbone = backbone_of(params.backbone)
        settings = resolve(params, self.dataset, self.method, data.seeds[0], backbone.depth, config)
        scores = partition_scores(backbone, settings, data, self.parts[index], node_local(self.store))
        if params.search.second_objective != "step_time":
            del scores["step_time"]  # no other run would measure the same
        return scores


def node_local(store):
    """The store of frozen features, in a folder of the node's own where the project folder is not seen."""
    if store is not None and not store.folder.parent.is_dir():
        store.folder = Path(tempfile.gettempdir()) / "mmrl-features"
    return store
