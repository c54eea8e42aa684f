"""Labelled images as fitting sees them."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore, evaluation_key
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import test_squares
from mmrl_core.evaluation.frozen import frozen_features


class Labelled(NamedTuple):
    """N images: frozen features (N, E), L2-normalised, and labels (N,)."""

    features: Tensor
    labels: Tensor

    @classmethod
    def of(cls, backbone: Backbone, data: ImageSet, store: FeatureStore | None = None) -> "Labelled":
        """Of the images' test views."""
        places = range(len(data.items))
        views = partial(views_of, backbone, data, places)
        features = frozen_features(backbone, keys_of(data, store), views, store if data.digests else None)
        return cls(features.clone(), torch.tensor(data.labels, dtype=torch.long))


def keys_of(data: ImageSet, store: FeatureStore | None) -> list[str]:
    """The images' keys in the store; where their digests are not known, keys that no store has."""
    return [evaluation_key(digest) for digest in data.digests] if store and data.digests else data.items


def views_of(backbone: Backbone, data: ImageSet, places: Sequence[int], rows: Sequence[int]) -> Tensor:
    """Test views as bytes (n, 3, S, S) of the images at those of the places that `rows` names."""
    return test_squares([data.images[places[row]] for row in rows], backbone.view_settings)
