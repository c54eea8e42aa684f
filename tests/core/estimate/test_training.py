"""The estimate of a training, and the refusal of one that cannot fit."""

import open_clip
import pytest
import torch

from benchmarks.counting import counted_flops
from benchmarks.support.cases import Case as Measured
from benchmarks.support.cases import model_of, model_step
from mmrl_core.clip.shapes import shape_of
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.errors import UserError
from mmrl_core.estimate.fits import refuse_heavy, refuse_too_large, refuse_unloaded, shape_of_loaded
from mmrl_core.estimate.machine import Room
from mmrl_core.estimate.training import Case, estimate, refuse_what_cannot_fit
from mmrl_core.method.adapter import Adapter
from mmrl_core.training.fit import fit
from tests.support.small import CLASSES, small_backbone

CPU = torch.device("cpu")


def case_of(name: str, method: str = "mmrl", j: int = 6, **others) -> Case:
    shape, config = shape_of(open_clip.get_model_config(name)), AdapterConfig(method=method, insertion_depth=j)
    return Case(shape, config, **{"batch": 4, "classes": 50, **others})


@pytest.mark.parametrize(("method", "published"), [("mmrl", 4_992_256), ("mmrlpp", 813_312)])
def test_a_vit_b_16_has_the_published_number_of_trainable_parameters(method, published):
    assert estimate(case_of("ViT-B-16", method)).trainable == published


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_an_adapter_has_as_many_parameters_as_is_said(method):
    backbone = small_backbone()
    config = AdapterConfig(method=method, insertion_depth=2, n_tokens=3, rep_dim=24, projection_rank=5)
    shape = shape_of_loaded(backbone)._replace(pooled_width=backbone.image_width)
    counted = sum(parameter.numel() for parameter in Adapter(config, backbone).parameters())
    assert estimate(Case(shape, config, 4, 50)).trainable == counted


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_a_step_has_the_operations_that_torch_counts(method, given):
    backbone = small_backbone(image_width=128, text_width=96, image_size=96)
    measured = Measured(backbone, method, classes=50, batch=4)
    model = model_of(measured, measured.adapter(), "float32")
    text = model.text_tower
    case = Case(
        shape_of_loaded(backbone)._replace(patch_size=16), measured.config, 4, 50,
        suffix=round(len(text.suffix) / 50), beginning=text.prefix.shape[1],
    )  # fmt: skip
    said = estimate(case)
    counted = counted_flops(model_step(model, measured, "float32", given))
    assert (said.given if given else said.step) == pytest.approx(counted, rel=0.1)


def test_the_largest_are_estimated_without_being_built():
    big, wide = (case_of("ViT-bigG-14", j=16), case_of("ViT-SO400M-14-SigLIP", j=13))
    for case, parameters in ((big, 2.54e9), (wide, 877e6)):
        said = estimate(case)
        assert said.frozen == pytest.approx(parameters, rel=0.01)
        assert 0 < said.given < said.step and said.memory.certain < sum(said.memory)
    many = estimate(big._replace(classes=1000)), estimate(big._replace(classes=20_000))
    growth = many[1].memory.text_activations - many[0].memory.text_activations
    assert growth < 0.1 * many[0].memory.text_activations  # chunks bound it


def test_a_text_tower_that_is_not_causal_costs_every_class_all_of_its_tokens():
    siglip = case_of("ViT-B-16-SigLIP")
    causal = siglip._replace(shape=siglip.shape._replace(causal=True))
    assert siglip.rows == 64
    assert estimate(siglip).given > 3 * estimate(causal).given
    roberta = case_of("xlm-roberta-base-ViT-B-32")  # padding is masked
    assert roberta.rows == roberta.beginning + roberta.suffix


def test_what_surely_does_not_fit_is_refused_in_one_line_with_what_to_change():
    case = case_of("ViT-L-14", batch=512)
    with pytest.raises(UserError) as refused:
        refuse_what_cannot_fit(case, Room(8 * 10**9, "a card"), "backbone ViT-L-14")
    said = str(refused.value)
    assert "512 images a step needs at least" in said and "a card has 8.0 GB" in said and "\n" not in said
    assert said.endswith("lower train.batch_size, raise adapter.insertion_depth or set train.precision bf16")
    refuse_what_cannot_fit(case._replace(batch=8), Room(8 * 10**9, "a card"), "backbone ViT-L-14")
    refuse_what_cannot_fit(case, None, "backbone ViT-L-14")  # the system does not say what there is


def test_bf16_is_not_advised_where_weights_are_most_of_it():
    with pytest.raises(UserError, match="take a smaller backbone, which `mmrl backbones` lists"):
        refuse_what_cannot_fit(case_of("ViT-bigG-14", j=16), Room(8 * 10**9, "a card"), "backbone ViT-bigG-14")


def test_weights_alone_are_refused_before_they_are_loaded_and_by_name_alone():
    small, config = Room(10**9, "a card"), AdapterConfig(method="mmrl", insertion_depth=16)
    with pytest.raises(UserError, match="the weights of backbone ViT-bigG-14 need 10.2 GB, but a card has 1.0 GB"):
        refuse_heavy("ViT-bigG-14", CPU, small)
    with pytest.raises(UserError, match="needs at least 1[12]"):
        refuse_unloaded("ViT-bigG-14", config, TrainConfig(), 100, 10, CPU, small)
    for name in ("tiny", "RN50", "/some/folder"):  # it fits; it has no layers for tokens; nobody knows it yet
        refuse_heavy(name, CPU, small)
        refuse_unloaded(name, config, TrainConfig(), 100, 10, CPU, small)


def test_training_asks_what_there_is_before_its_first_step():
    """A real call: of its images only the number is looked at, in vain."""
    backbone, config = small_backbone(), AdapterConfig(method="mmrl", insertion_depth=2, n_tokens=3, rep_dim=24)
    many = ImageSet(range(10**9), [], [], CLASSES, "a photo of a {}.")
    with pytest.raises(UserError, match="backbone small with 1000000000 images a step needs at least"):
        fit(backbone, config, TrainConfig(batch_size=10**9, precision="float32"), many)
    refuse_too_large(backbone, config, 4, 6, "float32")
