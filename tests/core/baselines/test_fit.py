"""Baselines from images: fitted on frozen features, and files like any adapter's."""

from hashlib import sha256

import pytest
import torch
from PIL import Image

from mmrl_core.baselines.fit import fit_baseline
from mmrl_core.baselines.labelled import Labelled
from mmrl_core.baselines.linear_probe import fit_linear_probe
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.config import BaselineConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import test_views as views_of
from mmrl_core.errors import UserError
from mmrl_core.method.adapter import load_adapter, save_adapter
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.protocols import BASELINES
from tests.support.small import small_backbone

NAMES = ["red", "green", "blue"]
COLOURS = torch.eye(3) * 120 + 60


def pictures(each: int, seed: int = 0, names: list[str] = NAMES) -> ImageSet:
    """Speckled pictures of each colour, by turns."""
    labels = list(range(len(names))) * each
    generator = torch.Generator().manual_seed(seed)
    images = []
    for label in labels:
        pixels = COLOURS[label] + 90 * torch.randn(40, 40, 3, generator=generator)
        images.append(Image.fromarray(pixels.clamp(0, 255).byte().numpy()))
    items = [f"{seed}-{place}" for place in range(len(labels))]
    digests = [sha256(image.tobytes()).hexdigest() for image in images]
    return ImageSet(items, images, labels, names, "a {}.", digests)


def without_images(names: list[str] = NAMES) -> ImageSet:
    return pictures(0, names=names)


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_comes_back_from_its_files_and_classifies_the_same(method, tmp_path):
    backbone, test = small_backbone(), pictures(4, seed=2)
    baseline, abstain = fit_baseline(backbone, BaselineConfig(method=method), pictures(4), pictures(3, seed=1), seed=1)
    assert baseline.head_card["images"] == baseline.calibration["images"] == abstain["images"] == 9
    save_adapter(tmp_path, baseline, backbone, {"class_names": NAMES, "template": "a {}.", "abstain": abstain})
    loaded, card = load_adapter(tmp_path, backbone)
    assert card["adapter"] == {"method": method} and card["abstain"] == abstain
    views = views_of(test.images, backbone.view_settings)
    one, other = (AdaptedCLIP(backbone, each, NAMES, "a {}.")(views).head for each in (baseline, loaded))
    assert one.equal(other)
    assert (one.argmax(-1) == torch.tensor(test.labels)).float().mean() > 0.9


def test_a_linear_probes_head_is_the_probe_of_its_frozen_features_and_tip_adapters_holds_them():
    backbone, train, val = small_backbone(), pictures(3), pictures(2, seed=1)
    known, held = (Labelled.of(backbone, data) for data in (train, val))
    views = views_of(train.images, backbone.view_settings)
    torch.testing.assert_close(known.features, backbone.encode_image(views), atol=2e-6, rtol=0)
    probe, strength = fit_linear_probe(known, held, 3)
    fitted, _ = fit_baseline(backbone, BaselineConfig(method="linear_probe"), train, val, seed=1)
    assert fitted.head.weight.equal(probe.weight) and fitted.head_card["inverse_regularization"] == strength
    assert (fitted.weights.adapter, fitted.head_card["head_weight"]) == (0, 1)
    cache, _ = fit_baseline(backbone, BaselineConfig(method="tip_adapter"), train, val, seed=1)
    by_class = torch.argsort(known.labels, stable=True)
    assert cache.head.keys.equal(known.features[by_class]) and cache.head_card["rows"] == [3, 3, 3]
    assert cache.head_card["adapter_weight"] == 1


@pytest.mark.parametrize("method", BASELINES)
def test_it_is_the_same_bits_with_a_store_and_a_function_of_images_and_seed(method, tmp_path):
    backbone, config, store = small_backbone(), BaselineConfig(method=method), FeatureStore(tmp_path, 1e9, depth=2)
    alone, _ = fit_baseline(backbone, config, pictures(3), pictures(2, seed=1), seed=1)
    for _ in range(2):
        kept, _ = fit_baseline(backbone, config, pictures(3), pictures(2, seed=1), seed=1, store=store)
        assert kept.head_card == alone.head_card and kept.calibration == alone.calibration
        assert all(tensor.equal(alone.state_dict()[name]) for name, tensor in kept.state_dict().items())
    assert len(list(tmp_path.rglob("*.safetensors"))) == 9 + 6


@pytest.mark.parametrize("method", BASELINES)
def test_without_validation_it_has_neither_temperatures_nor_a_threshold(method):
    config = BaselineConfig(method=method)
    baseline, abstain = fit_baseline(small_backbone(), config, pictures(3), without_images(), seed=1)
    assert (abstain, baseline.calibration, baseline.head_card["images"]) == (None, None, 0)


def test_without_a_training_image_there_is_none():
    for method in BASELINES:
        with pytest.raises(UserError, match="no training image"):
            fit_baseline(small_backbone(), BaselineConfig(method=method), without_images(), pictures(1), seed=1)
    uneven = pictures(2, names=NAMES[:2])._replace(class_names=NAMES)
    with pytest.raises(UserError, match="1 of 3 classes have no training image"):
        fit_baseline(small_backbone(), BaselineConfig(method="linear_probe"), uneven, pictures(1), seed=1)
    cache, _ = fit_baseline(small_backbone(), BaselineConfig(method="tip_adapter"), uneven, pictures(1), seed=1)
    assert cache.head_card["rows"] == [2, 2, 0]
