"""What a step takes: the batches of an epoch in their order, their views made and their features read ahead of it."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from PIL.Image import Image
from torch import Tensor

from mmrl_core.clip.feature_store import FrozenFeatures, LoadedBatch, image_digest, training_key
from mmrl_core.clip.towers import Frozen
from mmrl_core.config import TrainConfig
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.pictures import Decoded
from mmrl_core.data.pixels import Pixels
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import train_view, view_seed
from mmrl_core.distributed import Workers


def batches(n: int, train: TrainConfig, epoch: int) -> Iterator[list[int]]:
    """Item indices of every batch of an epoch; the last partial batch is dropped when there is a full one."""
    generator = torch.Generator().manual_seed(view_seed(train.seed, epoch, "order") >> 1)
    order = torch.randperm(n, generator=generator).tolist()
    size = min(train.batch_size, n)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


class TrainingViews:
    """The batches of every epoch as frozen features and labels; threads read and augment ahead of the step.

    `runs`: each training's data and settings; a step takes the batches of all.
    """

    def __init__(self, runs: Sequence[tuple[ImageSet, TrainConfig]], features: FrozenFeatures, workers: Workers):
        self.runs, self.features, self.workers = runs, features, workers
        self.backbone = features.tower.backbone
        self.digests = [_digests(data) if features.shelf else data.items for data, _ in runs]

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Frozen, Tensor]]:
        """Frozen features of this worker's share of B views, and their labels (B,), from step `start` on.

        On the backbone's device; of R runs all with (R,) before.
        """
        of_runs = zip(*(batches(len(data.items), train, epoch) for data, train in self.runs), strict=True)
        jobs = ([self.workers.share(indices) for indices in step] for step in islice(of_runs, start, None))
        for loaded, labels in map_in_order(partial(self._load, epoch), jobs, size=1):
            frozen = self.features.frozen(loaded)
            if len(self.runs) > 1:
                frozen = Frozen(*(tensor.unflatten(0, labels.shape) for tensor in frozen))
            yield frozen, labels.to(self.backbone.device, non_blocking=True)

    def _load(self, epoch: int, step: list[list[int]]) -> tuple[LoadedBatch, Tensor]:
        """`step`: each run's indices."""
        keys, rows = [], []
        for indices, own, (data, train) in zip(step, self.digests, self.runs, strict=True):
            keys += [training_key(own[index], train, epoch, data.items[index]) for index in indices]
            rows += [(data, train, index) for index in indices]

        def views(missing: list[int]) -> Tensor:
            return torch.stack([self._view(epoch, *rows[row]) for row in missing])

        labels = torch.tensor([data.labels[index] for data, _, index in rows])
        loaded = self.features.load(keys, views)
        return loaded, labels.view(len(self.runs), -1) if len(self.runs) > 1 else labels

    def _view(self, epoch: int, data: ImageSet, train: TrainConfig, index: int) -> Tensor:
        settings, images = self.backbone.view_settings, data.images
        if isinstance(images, Decoded) and train.views == "fast" and train.augmentation != "none":
            image: Image | Pixels = images.pixels(index, settings.size)
        else:
            image = images[index]
        return train_view(image, settings, train.seed, epoch, data.items[index], train.views, train.augmentation)


def _digests(data: ImageSet) -> list[str]:
    return data.digests or [image_digest(image) for image in data.images]
