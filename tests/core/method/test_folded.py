"""The folded form: AdaptedCLIP's outputs at the cost of a plain pass of the image tower."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmrl_core.clip.backbone import Backbone, new_clip
from mmrl_core.method.folded import FoldedCLIP
from mmrl_core.method.model import AdaptedCLIP, Output
from tests.core.method.test_model import TOLERANCE, relative
from tests.support.small import CLASSES, KINDS, random_images, small_adapter, small_backbone, small_kind

TEMPLATE = "a photo of a {}."
METHODS = [("mmrl", 1.0), ("mmrlpp", 1.0), ("mmrlpp", 0.6)]


def shaped_backbone(layers: int, image_size: int, quick_gelu: bool = False) -> Backbone:
    """A random CLIP of 16-pixel patches with narrow towers."""
    torch.manual_seed(0)
    clip = new_clip(
        {
            "embed_dim": 32,
            "vision_cfg": {
                "layers": layers, "width": 64, "head_width": 16, "patch_size": 16, "image_size": image_size,
            },
            "text_cfg": {"width": 48, "heads": 4, "layers": layers},
            "quick_gelu": quick_gelu,
        }
    )  # fmt: skip
    return Backbone.from_clip(clip, name="shaped")


def adapted(backbone: Backbone, method: str, names=CLASSES, **settings) -> AdaptedCLIP:
    return AdaptedCLIP(backbone, small_adapter(backbone, method, **settings), names, TEMPLATE).eval()


@torch.no_grad()
def assert_alike(folded: FoldedCLIP, model: AdaptedCLIP, images: torch.Tensor) -> None:
    expected = model(images)
    for name, found in tensors(folded(images)):
        assert relative(found, getattr(expected, name)) < TOLERANCE, name


def tensors(output: Output) -> list[tuple[str, torch.Tensor]]:
    """All that there is: only an adapter with a head has its logits."""
    return [(name, tensor) for name, tensor in output._asdict().items() if tensor is not None]


@pytest.mark.parametrize(("method", "beta"), METHODS)
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_folded_form_gives_what_the_model_gives(method, beta, depth):
    model = adapted(small_backbone(), method, insertion_depth=depth, beta=beta)
    assert_alike(FoldedCLIP.from_model(model), model, random_images(5))


@pytest.mark.parametrize(("method", "beta"), METHODS)
def test_it_does_so_with_quick_gelu_and_towers_of_different_depth(method, beta):
    quick = adapted(shaped_backbone(3, 32, quick_gelu=True), method, beta=beta)
    assert_alike(FoldedCLIP.from_model(quick), quick, random_images(3))
    uneven = adapted(small_backbone(5, 3), method, beta=beta)
    assert_alike(FoldedCLIP.from_model(uneven), uneven, random_images(3))


@torch.no_grad()
def test_images_that_a_cpu_takes_in_parts_come_out_in_order(monkeypatch):
    model = adapted(small_backbone(), "mmrlpp")
    folded, images = FoldedCLIP.from_model(model), random_images(7)
    whole = folded(images)
    monkeypatch.setattr("mmrl_core.clip.towers.CHUNK_TOKENS", 10)  # two images of five tokens
    assert folded.tower.chunk(7) == 2
    for name, found in tensors(folded(images)):
        assert relative(found, getattr(whole, name)) < TOLERANCE, name


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_does_so_with_a_head_and_of_a_baseline(kind):
    for backbone in (small_backbone(), small_backbone(5, 3)):
        model = AdaptedCLIP(backbone, small_kind(backbone, kind), CLASSES, TEMPLATE).eval()
        folded, images = FoldedCLIP.from_model(model), random_images(5)
        assert_alike(folded, model, images)
        assert folded(images).head.shape == (5, len(CLASSES)) and folded.weights == model.adapter.weights


def test_a_head_that_counts_for_nothing_costs_nothing():
    backbone, images = small_backbone(), random_images(2)
    model = AdaptedCLIP(backbone, small_kind(backbone, "mmrl + probe"), CLASSES, TEMPLATE).eval()
    model.adapter.head_card["head_weight"] = 0.0
    folded, plain = FoldedCLIP.from_model(model), FoldedCLIP.from_model(adapted(backbone, "mmrl"))
    assert folded(images).head is None and operations(folded, images) == operations(plain, images)


@torch.no_grad()
def test_other_classes_take_the_place_of_the_folded_ones():
    backbone = small_backbone()
    folded = FoldedCLIP.from_model(adapted(backbone, "mmrlpp"))
    others = adapted(backbone, "mmrlpp", names=["horse", "sheep"])
    images = random_images(2)
    found, expected = folded(images, others.text_features()), others(images)
    assert found.logits_fused.shape == (2, 2)
    assert relative(found.logits_fused, expected.logits_fused) < TOLERANCE


def test_the_folded_form_stays_as_the_adapter_was():
    model = adapted(small_backbone(), "mmrlpp")
    folded, images = FoldedCLIP.from_model(model), random_images(2)
    before = folded(images)
    torch.nn.init.zeros_(model.adapter.space)
    torch.nn.init.zeros_(model.adapter.projection.A)
    assert all(torch.equal(tensor, getattr(before, name)) for name, tensor in tensors(folded(images)))
    assert relative(before.logits_rep, model(images).logits_rep) > 0.1


def test_neither_does_a_change_of_its_head_reach_it():
    model = AdaptedCLIP(small_backbone(), small_kind(small_backbone(), "linear_probe"), CLASSES, TEMPLATE).eval()
    folded, images = FoldedCLIP.from_model(model), random_images(2)
    before = folded(images).head
    torch.nn.init.zeros_(model.adapter.head.weight)
    assert folded(images).head.equal(before) and not model(images).head.equal(before)


def test_the_frozen_weights_are_shared_not_copied():
    model = adapted(small_backbone(), "mmrl")
    blocks = FoldedCLIP.from_model(model).tower.blocks
    assert all(ours is theirs for ours, theirs in zip(blocks, model.image_tower.blocks, strict=True))


def test_nothing_of_the_folded_form_can_be_trained():
    folded = FoldedCLIP.from_model(adapted(small_backbone(), "mmrl"))
    assert not list(folded.parameters())
    assert not folded(random_images(1)).logits_fused.requires_grad


def operations(function, images: torch.Tensor) -> int:
    """Floating point operations of matrix products, convolutions and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(images)
    return counter.get_total_flops()


@pytest.fixture
def no_fused_attention():
    """Without torch's fused encoder layer, whose operations the counter does not see."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize(("method", "beta"), METHODS)
@pytest.mark.parametrize("depth", [1, 6, 12])
def test_an_adapted_image_costs_no_more_than_open_clips_own_pass(no_fused_attention, method, beta, depth):
    backbone, images = shaped_backbone(12, 224), random_images(2, 224)
    model = adapted(backbone, method, insertion_depth=depth, n_tokens=5, beta=beta)
    plain = operations(backbone.clip.encode_image, images)
    assert 0 < operations(FoldedCLIP.from_model(model), images) <= plain
    multiplications = 12 * backbone.image_width**2  # of a token in a layer: qkv 3, out 1, fc 4 and proj 4 times D x D
    assert plain > 2 * multiplications * len(images) * 12 * backbone.image_tokens  # so the counter saw them all
