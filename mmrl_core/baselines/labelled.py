"""Labelled images as fitting sees them."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore, evaluation_key
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import test_views
from mmrl_core.evaluation.frozen import frozen_features


class Labelled(NamedTuple):
    """N images: frozen features (N, E), L2-normalised, and labels (N,)."""

    features: Tensor
    labels: Tensor

    @classmethod
    def of(cls, backbone: Backbone, data: ImageSet, store: FeatureStore | None = None) -> "Labelled":
        """Of the images' test views."""
        keys = [evaluation_key(digest) for digest in data.digests] if store and data.digests else data.items
        features = frozen_features(
            backbone, keys, lambda rows: test_views([data.images[row] for row in rows], backbone.view_settings),
            store if data.digests else None,
        )  # fmt: skip
        return cls(features.clone(), torch.tensor(data.labels, dtype=torch.long))
