"""The store of frozen features of this project folder, for the stages that want one."""

import shutil

from flows.project.paths import STATE
from flows.stages.ahead.ready import FOLDER as READY
from mmrl_core.config import Params
from mmrl_core.presets import explicit_values

FOLDER = STATE / "features"
DEPTH = "adapter.insertion_depth"


def open_store(params: Params, stage: str):
    """The FeatureStore that `stage` keeps frozen features in, as `features.cache` says; None: it keeps none.

    Training reads what the search has kept: it sees the same views.
    """
    keeps = params.features.cache in ("always", stage)
    if not keeps and (params.features.cache, stage) != ("tune", "train"):
        return None
    from mmrl_core.clip.feature_store import FeatureStore

    return FeatureStore(FOLDER.absolute(), params.features.budget_gb * 1e9, shallowest(params), keeps)


def shallowest(params: Params) -> int | None:
    """The smallest insertion depth that the search tries; None where it tries but one."""
    searched = params.search.enabled and DEPTH not in explicit_values(params)
    return min(params.search.space.get(DEPTH, {}).get("choice", []), default=None) if searched else None


def clean() -> int:
    """Remove frozen features, trials of searches, outputs made ahead; how many bytes that freed. All are made anew."""
    folders = (FOLDER, READY, STATE / "searches")
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return size
