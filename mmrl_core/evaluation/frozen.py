"""The frozen CLIP's image features of test views, from the records that scoring wants too."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore, FrozenFeatures
from mmrl_core.clip.towers import ImageTower
from mmrl_core.evaluation.scores import BATCH_SIZE, CHUNK, batched


@torch.inference_mode()
def frozen_features(
    backbone: Backbone, keys: Sequence[str], views: Callable[[list[int]], Tensor], store: FeatureStore | None = None
) -> Tensor:
    """(N, E), L2-normalised, of N images by their keys in the store; `views` gives the test views (n, 3, S, S) of those
    at some of the places."""
    depth = store.depth if store and store.depth else backbone.depth
    kept = FrozenFeatures(ImageTower(backbone, backbone.depth - depth + 1), CHUNK, store)
    parts = [torch.empty(0, backbone.embed_dim)]
    for places in batched(range(len(keys)), BATCH_SIZE):
        loaded = kept.load([keys[place] for place in places], partial(_views_at, views, places))
        parts.append(kept.frozen(loaded).zero_shot.cpu())
    return torch.cat(parts)


def _views_at(views: Callable[[list[int]], Tensor], places: list[int], rows: list[int]) -> Tensor:
    return views([places[row] for row in rows])
