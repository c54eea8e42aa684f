"""Features of images by the frozen CLIP and by an adapter."""

from itertools import count, islice

import numpy as np
import pytest
import torch

import mmrl
from mmrl import UserError, load_backbone
from mmrl_core.adapting.embedding import FROZEN, IMAGE, REP, Encoder
from mmrl_core.data.images import decode
from mmrl_core.data.views import test_view as view_of
from mmrl_core.method.adapter import save_adapter
from mmrl_core.method.baseline import Baseline
from mmrl_core.predict import Predictor
from tests.core.test_predict import TRAINED, noise, save_small
from tests.support.small import small_head


@torch.inference_mode()
def test_the_frozen_features_are_the_backbones():
    backbone = load_backbone("tiny")
    views = torch.stack([view_of(decode(noise(seed), ""), backbone.view_settings) for seed in range(3)])
    found = mmrl.embed([noise(seed) for seed in range(3)])
    assert found.dtype == np.float32 and found.shape == (3, backbone.embed_dim)
    assert np.allclose(found, backbone.encode_image(views).numpy(), atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.array_equal(found, mmrl.embed((noise(seed) for seed in range(3)), backbone=backbone))


@torch.inference_mode()
def test_an_adapters_features_are_what_it_scores(adapted):
    images = [noise(seed) for seed in range(3)]
    found = adapted.features(images)
    output = adapted.model(torch.stack([adapted.transform(image) for image in images]))
    assert list(found) == [FROZEN, IMAGE, REP]
    assert np.allclose(found[FROZEN], mmrl.embed(images), atol=1e-6)
    assert np.allclose(found[IMAGE], output.image_features.numpy(), atol=1e-6)
    assert np.allclose(found[REP], output.rep_features.numpy(), atol=1e-6)
    assert not np.allclose(found[FROZEN], found[IMAGE], atol=1e-2)


def test_an_adapter_without_a_probe_has_frozen_features_all_the_same(tmp_path):
    save_small(tmp_path)
    encoder = Encoder.of(Predictor.load(tmp_path))
    [row] = encoder.stream([noise(1)])
    assert np.allclose(row[FROZEN], mmrl.embed([noise(1)])[0], atol=1e-6)
    assert encoder.facts["adapter_sha256"] == Predictor.load(tmp_path).card["sha256"]


def test_a_baseline_has_the_frozen_features_alone(tmp_path):
    backbone = load_backbone("tiny")
    head, card = small_head(backbone, "linear", 3)
    config = mmrl.BaselineConfig(method="linear_probe")
    save_adapter(tmp_path, Baseline(config, backbone, head, card), backbone, {"class_names": TRAINED, "template": "{}"})
    found = mmrl.load(tmp_path).features([noise(1)])
    assert list(found) == [FROZEN] and np.allclose(found[FROZEN], mmrl.embed([noise(1)]), atol=1e-6)


def test_images_without_end_are_embedded_as_they_come():
    taken = count()
    rows = Encoder(load_backbone("tiny")).stream(noise(next(taken)) for _ in count())
    assert len(list(islice(rows, 5))) == 5
    assert next(taken) < 1000


def test_an_image_that_cannot_be_read_stops_it_or_gives_none():
    encoder = Encoder(load_backbone("tiny"))
    images = [noise(1), b"no image", noise(2)]
    with pytest.raises(UserError, match="number 1 is not an image"):
        list(encoder.stream(images))
    _, second, third = encoder.stream(images, skip_damaged=True)
    assert second is None and np.allclose(third[FROZEN], mmrl.embed([noise(2)])[0], atol=1e-6)
    assert list(encoder.stream([b""], skip_damaged=True)) == [None]


def test_no_image_gives_no_row_and_one_image_is_no_list():
    assert mmrl.embed([]).shape == (0, 128)
    for image in (noise(1), "one.png", 3):
        with pytest.raises(UserError, match="put the one into a list"):
            mmrl.embed(image)
