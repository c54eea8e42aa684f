"""What a trained adapter gets from few-shot validation, and that it is left as it is where that does not help."""

import pytest
import torch

from mmrl_core.baselines.finish import finish
from mmrl_core.baselines.fit import fit_baseline
from mmrl_core.baselines.labelled import Labelled
from mmrl_core.baselines.linear_probe import fit_linear_probe
from mmrl_core.config import BaselineConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import test_views as views_of
from mmrl_core.errors import UserError
from mmrl_core.evaluation.calibration import fusion, temperature
from mmrl_core.method.adapter import Adapter, save_adapter
from mmrl_core.method.adapter_card import TENSORS
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.model import AdaptedCLIP
from tests.core.baselines.test_fit import NAMES, pictures, without_images
from tests.support.small import small_adapter, small_backbone

CONTENT = {"class_names": NAMES, "template": "a {}."}


def finished(probe: str, train: ImageSet, val: ImageSet, method: str = "mmrlpp") -> tuple[Adapter, dict | None]:
    adapter = small_adapter(small_backbone(), method, probe=probe)
    return adapter, finish(small_backbone(), adapter, train, val)


def shuffled(each: int, seed: int) -> ImageSet:
    """With labels that say nothing of the images."""
    data, generator = pictures(each, seed), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.labels), generator=generator).tolist()
    return data._replace(labels=[data.labels[place] for place in order])


@torch.no_grad()
def predicted(adapter: Adapter) -> torch.Tensor:
    """Probabilities of other pictures."""
    views = views_of(pictures(3, seed=5).images, small_backbone().view_settings)
    output = AdaptedCLIP(small_backbone(), adapter, NAMES, "a {}.")(views)
    return joint_logits(output, torch.arange(3), adapter.weights).softmax(-1)


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
@torch.no_grad()
def test_a_probe_that_helps_is_fused_by_validation_and_so_are_the_temperatures(method):
    train, val = pictures(4), pictures(4, seed=1)
    adapter, abstain = finished("fused", train, val, method)
    backbone = small_backbone()
    probe, strength = fit_linear_probe(*(Labelled.of(backbone, data) for data in (train, val)), 3)
    model = AdaptedCLIP(backbone, adapter, NAMES, "a {}.")
    output, truth = model(views_of(val.images, backbone.view_settings)), torch.tensor(val.labels)
    own, head = output.logits_fused, probe(Labelled.of(backbone, val).features)
    weights = fusion(own, head, truth)
    assert weights.head == 1 and adapter.head.weight.equal(probe.weight)
    assert adapter.head_card == {"kind": "linear", "adapter_weight": weights.adapter, "head_weight": 1.0, "images": 12,
                                 "inverse_regularization": strength}  # fmt: skip
    assert adapter.calibration == {
        "trained": temperature(weights.adapter * own + head, truth), "other": temperature(output.logits_class, truth),
        "without_probe": temperature(own, truth), "images": 12,
    }  # fmt: skip
    assert abstain["images"] == 12
    right = predicted(adapter).argmax(-1) == torch.tensor(pictures(3, seed=5).labels)
    assert right.float().mean() > 0.9
    assert adapter.n_trainable == small_adapter(backbone, method).n_trainable


class Counted(list):
    """Images that count how often one is asked for."""

    asked = 0

    def __getitem__(self, place):
        self.asked += 1
        return super().__getitem__(place)


def test_one_pass_over_the_validation_images_gives_probe_temperatures_and_threshold():
    val = pictures(4, seed=1)
    counted = Counted(val.images)
    adapter, abstain = finished("fused", pictures(4), val._replace(images=counted))
    assert adapter.head is not None and abstain is not None
    assert counted.asked == len(val.images)
    counted = Counted(val.images)
    fit_baseline(small_backbone(), BaselineConfig(method="tip_adapter"), pictures(4), val._replace(images=counted), 1)
    assert counted.asked == len(val.images)


def test_a_probe_that_does_not_help_leaves_files_and_predictions_as_without(tmp_path):
    train, val = shuffled(6, seed=1), shuffled(6, seed=2)
    with_probe, without = (finished(probe, train, val)[0] for probe in ("fused", "off"))
    assert (with_probe.head, with_probe.head_card) == (None, None)
    assert with_probe.calibration == without.calibration and "without_probe" not in without.calibration
    assert predicted(with_probe).equal(predicted(without))
    cards = []
    for name, adapter in (("fused", with_probe), ("off", without)):
        cards.append(save_adapter(tmp_path / name, adapter, small_backbone(), CONTENT))
        del cards[-1]["adapter"]["probe"], cards[-1]["card_sha256"]
    assert cards[0] == cards[1]
    assert (tmp_path / "fused" / TENSORS).read_bytes() == (tmp_path / "off" / TENSORS).read_bytes()


def test_off_is_off_however_much_a_probe_would_help():
    adapter, abstain = finished("off", pictures(4), pictures(4, seed=1))
    assert adapter.head is None and adapter.calibration["images"] == abstain["images"] == 12


def test_without_validation_there_is_nothing():
    adapter, abstain = finished("fused", pictures(4), without_images())
    assert (adapter.head, adapter.head_card, adapter.calibration, abstain) == (None, None, None, None)


def test_where_a_class_has_no_training_image_there_is_no_probe():
    train = pictures(4, names=NAMES[:2])._replace(class_names=NAMES)
    adapter, _ = finished("fused", train, pictures(4, seed=1))
    assert adapter.head is None and adapter.calibration is not None


def test_an_adapter_that_answers_with_no_number_gets_no_probe_and_cannot_be_saved(tmp_path):
    adapter = small_adapter(small_backbone(), probe="fused")
    with torch.no_grad():
        adapter.space.mul_(1e37)
    abstain = finish(small_backbone(), adapter, pictures(4), pictures(4, seed=1))
    assert adapter.head is None
    with pytest.raises(UserError, match=r"cannot be saved: abstain\.threshold is nan, no number"):
        save_adapter(tmp_path, adapter, small_backbone(), {**CONTENT, "abstain": abstain})
