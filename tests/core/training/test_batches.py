import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mmrl_core.clip.feature_store import FrozenFeatures
from mmrl_core.clip.towers import ImageTower
from mmrl_core.config import TrainConfig
from mmrl_core.data.sets import ImageSet, image_set
from mmrl_core.data.shards import Example
from mmrl_core.data.views import test_views as views_of
from mmrl_core.data.views import view_seed
from mmrl_core.distributed import Workers
from mmrl_core.training.batches import TrainingViews, batches
from tests.support.small import small_backbone

N = 6


def photographs() -> ImageSet:
    examples = []
    for index in range(N):
        pixels = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((160, 120)).save(buffer, "JPEG")
        examples.append(Example(f"{index:08d}", f"{index}.jpg", 0, "a", buffer.getvalue()))
    return image_set(examples, [0], ["a"], "a {}.")


def features_of(train: TrainConfig, data: ImageSet):
    backbone = small_backbone()
    tower = ImageTower(backbone, 1, torch.float32)
    return tower, TrainingViews([(data, train)], FrozenFeatures(tower, train.batch_size), Workers())


def test_pillows_views_give_the_bits_of_torchvisions_transforms():
    train, data = TrainConfig(batch_size=3, views="pillow"), photographs()
    tower, training = features_of(train, data)
    settings = tower.backbone.view_settings
    reference = transforms.Compose([
        transforms.RandomResizedCrop(settings.size, (0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(0.5),
        transforms.ToTensor(),
        transforms.Normalize(settings.mean, settings.std),
    ])  # fmt: skip
    for (frozen, _), indices in zip(training.batches(1), batches(N, train, 1), strict=True):
        views = []
        for index in indices:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(view_seed(train.seed, 1, data.items[index]))
                views.append(reference(data.images[index]))
        expected = tower.frozen(torch.stack(views), tower.chunk(train.batch_size))
        assert all(torch.equal(one, other) for one, other in zip(frozen, expected, strict=True))


@pytest.mark.parametrize("views", ["fast", "pillow"])
def test_without_augmentation_every_epoch_sees_the_test_views(views):
    train, data = TrainConfig(batch_size=N, views=views, augmentation="none"), photographs()
    tower, training = features_of(train, data)
    (frozen, _), (order,) = next(iter(training.batches(2))), batches(N, train, 2)
    expected = tower.frozen(
        views_of([data.images[index] for index in order], tower.backbone.view_settings), tower.chunk(N)
    )
    assert all(torch.equal(one, other) for one, other in zip(frozen, expected, strict=True))


def test_fast_views_are_near_pillows_and_read_in_place_of_whole_photographs():
    data = photographs()
    found = {}
    for views in ("fast", "pillow"):
        _, training = features_of(TrainConfig(batch_size=N, views=views), data)
        found[views] = next(iter(training.batches(0)))[0].zero_shot
    assert not torch.equal(found["fast"], found["pillow"])
    assert torch.cosine_similarity(found["fast"], found["pillow"]).min() > 0.98
