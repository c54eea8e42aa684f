"""The validation curve: what it says, and that the training does not notice it."""

import pytest
import torch
from PIL import Image

from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import test_views as views_of
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training import validation
from mmrl_core.training.fit import fit
from tests.core.evaluation.of_probabilities import summary
from tests.support.small import small_backbone

COLOURS = ["red", "green", "blue"]
CONFIG = AdapterConfig(method="mmrlpp", insertion_depth=2, n_tokens=2, rep_dim=8, projection_rank=4)
TRAIN = TrainConfig(epochs=3, batch_size=4, lr=5e-3)


def squares(split: str, each: int) -> ImageSet:
    images = [Image.new("RGB", (20, 16), colour) for colour in COLOURS for _ in range(each)]
    items = [f"{split}-{i:08d}" for i in range(len(images))]
    return ImageSet(items, images, [i // each for i in range(len(images))], COLOURS, "a {} square.")


def without_val(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in epoch.items() if not name.startswith("val_")} for epoch in history]


def test_a_training_that_is_validated_is_the_same_to_the_bit():
    plain = fit(small_backbone(), CONFIG, TRAIN, squares("train", 3))
    torch.manual_seed(7)
    watched = fit(small_backbone(), CONFIG, TRAIN, squares("train", 3), val=squares("val", 2))
    assert without_val(watched.history) == plain.history
    assert all("val_nll" in epoch for epoch in watched.history)
    for name, tensor in plain.adapter.state_dict().items():
        assert torch.equal(tensor, watched.adapter.state_dict()[name]), name


def test_the_last_figures_are_those_of_the_adapter_that_comes_out():
    backbone, val = small_backbone(), squares("val", 2)
    fitted = fit(backbone, CONFIG, TRAIN, squares("train", 3), val=val)
    model = AdaptedCLIP(backbone, fitted.adapter, COLOURS, val.template)
    with torch.no_grad():
        probabilities = model(views_of(val.images, backbone.view_settings)).logits_fused.softmax(-1)
    wanted = summary(probabilities, torch.tensor(val.labels))
    last = fitted.history[-1]
    assert (last["val_accuracy"], last["val_nll"]) == pytest.approx((wanted["accuracy"], wanted["nll"]), rel=1e-5)
    assert len({epoch["val_nll"] for epoch in fitted.history}) == TRAIN.epochs


def test_a_resumed_run_has_the_same_curve_and_one_without_it_so_far_goes_on_with_it(tmp_path):
    data, val = squares("train", 3), squares("val", 2)
    whole = fit(small_backbone(), CONFIG, TRAIN, data, val=val).history

    def break_off(epoch: int, metrics: dict) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    for name, before in (("validated", val), ("not", None)):
        with pytest.raises(KeyboardInterrupt):
            fit(small_backbone(), CONFIG, TRAIN, data, val=before, report=break_off, checkpoints=tmp_path / name)
    assert fit(small_backbone(), CONFIG, TRAIN, data, val=val, checkpoints=tmp_path / "validated").history == whole
    late = fit(small_backbone(), CONFIG, TRAIN, data, val=val, checkpoints=tmp_path / "not").history
    assert late == [*without_val(whole[:2]), whole[2]]


def test_without_a_validation_image_there_is_no_curve():
    fitted = fit(small_backbone(), CONFIG, TRAIN, squares("train", 3), val=squares("val", 0))
    assert fitted.history == without_val(fitted.history)


def test_of_many_images_some_of_all_classes_are_looked_at(monkeypatch):
    monkeypatch.setattr(validation, "MOST", 6)
    backbone = small_backbone()
    adapter = fit(backbone, CONFIG, TRAIN.model_copy(update={"epochs": 1}), squares("train", 1)).adapter
    watched = validation.Validation(AdaptedCLIP(backbone, adapter, COLOURS, "a {} square."), squares("val", 30))
    assert watched.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(watched.trunk) == 6
