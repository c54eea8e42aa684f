"""The analytic cost of the published code's step, and of ours, against what torch dispatches. Nothing is timed."""

import pytest
from torch._subclasses import FakeTensorMode

from benchmarks.counting import counted_flops, counting
from benchmarks.support.cases import Case, class_names, model_of, model_step, oracle_step
from benchmarks.support.costs import Shape, our_step, published_step
from mmrl_core.clip.backbone import Backbone, new_clip
from mmrl_core.config import AdapterConfig
from tests.support.small import small_backbone

METHODS = ("mmrl", "mmrlpp")
VIT_B_16 = {
    "embed_dim": 512,
    "vision_cfg": {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224},
    "text_cfg": {"width": 512, "heads": 8, "layers": 12},
}


@pytest.fixture(scope="module")
def vit_b_16() -> Backbone:
    """The shape of a ViT-B/16, no weights: its tensors are fake, nothing is computed with them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = new_clip(VIT_B_16)
    return Backbone.from_clip(clip, name="ViT-B-16")


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_model_does_the_operations_of_the_published_code_at_a_small_shape(method):
    case = Case(small_backbone(), method, classes=10, batch=3)
    assert counted_flops(oracle_step(case)) == pytest.approx(published_step(Shape.of(case)).flops, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_model_does_the_operations_of_the_published_code_on_a_vit_b_16(vit_b_16, method):
    case = Case(vit_b_16, method, classes=50, batch=4)
    assert counted_flops(oracle_step(case)) == pytest.approx(published_step(Shape.of(case)).flops, rel=0.05)


def test_counting_without_computing_finds_the_operations_of_a_computed_step():
    step = oracle_step(Case(small_backbone(), "mmrlpp", classes=6, batch=2))
    with counting() as counter:
        step()
    assert counter.get_total_flops() == counted_flops(step)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cached", [False, True])
def test_our_step_does_the_operations_that_its_formula_says(vit_b_16, method, cached):
    case = Case(vit_b_16, method, classes=50, batch=4)
    model = model_of(case, case.adapter(), "float32")
    counted = counted_flops(model_step(model, case, "float32", cached))
    assert counted == pytest.approx(our_step(Shape.of(case), model, cached).flops, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_at_50_classes_and_batch_4_saves_two_thirds_of_the_operations_and_four_fifths_when_cached(
    vit_b_16, method
):
    case = Case(vit_b_16, method, classes=50, batch=4)
    shape, model = Shape.of(case), model_of(case, case.adapter(), "float32")
    published = published_step(shape).flops
    assert our_step(shape, model, cached=False).flops < 0.35 * published
    assert our_step(shape, model, cached=True).flops < 0.20 * published


@pytest.mark.parametrize("count", [1, 10, 50, 1000])
def test_class_names_are_distinct_at_every_count(count):
    assert len(set(class_names(count))) == count


def test_the_adapter_of_a_case_is_the_published_one_on_a_vit_b_16(vit_b_16):
    assert Case(vit_b_16, "mmrl", 10, 4).config == AdapterConfig(method="mmrl")
