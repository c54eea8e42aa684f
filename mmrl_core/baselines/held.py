"""What validation images give an adapter before it is finished: one pass over them is enough for all that is chosen."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmrl_core.baselines.labelled import Labelled, keys_of, views_of
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore, FrozenFeatures
from mmrl_core.data.sets import ImageSet
from mmrl_core.evaluation.scores import BATCH_SIZE, CHUNK, batched
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.model import AdaptedCLIP, Output


class Held(NamedTuple):
    """Logits and features of N validation images, computed as scoring computes them, whatever head comes later."""

    output: Output  # (N, ...), without a head's logits
    zero_shot: Tensor  # frozen features (N, E)
    labels: Tensor  # (N,), on the CPU

    @classmethod
    @torch.inference_mode()
    def of(cls, backbone: Backbone, adapter: Adapter, val: ImageSet, store: FeatureStore | None = None) -> "Held":
        """By an adapter, without the head that it may have; of at least one image."""
        model = AdaptedCLIP(backbone, adapter, val.class_names, val.template)
        features = FrozenFeatures(model.image_tower, CHUNK, store if val.digests else None)
        keys, text, parts = keys_of(val, store), model.text_features(), []
        for places in batched(range(len(val.items)), BATCH_SIZE):
            loaded = features.load([keys[place] for place in places], partial(views_of, backbone, val, places))
            frozen = features.frozen(loaded)
            output = model.from_trunk(frozen.trunk, text, frozen.zero_shot)
            parts.append((*output[:5], frozen.zero_shot))
        by_class, by_rep, fused, f_c, f_r, zero_shot = (torch.cat(column) for column in zip(*parts, strict=True))
        output = Output(by_class, by_rep, fused, f_c, f_r, text)
        return cls(output, zero_shot, torch.tensor(val.labels, dtype=torch.long))

    @classmethod
    @torch.inference_mode()
    def of_features(cls, backbone: Backbone, baseline: Baseline, known: Labelled, val: ImageSet) -> "Held":
        """By a baseline, from the images' frozen features alone."""
        model = AdaptedCLIP(backbone, baseline, val.class_names, val.template)
        features = known.features.to(backbone.device)
        output = model.from_trunk(features, model.text_features(), features)  # its trunk plays no part
        return cls(output, features, known.labels)

    def labelled(self) -> Labelled:
        """As fitting sees them."""
        return Labelled(self.zero_shot.cpu().clone(), self.labels)
