"""The model against the oracle, over methods, depths, token counts, tower shapes, templates and class lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl_core.clip.backbone import Backbone, new_clip
from mmrl_core.config import AdapterConfig
from mmrl_core.errors import UserError
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.losses import mmrl_loss
from mmrl_core.method.model import AdaptedCLIP
from tests.oracle import Oracle
from tests.support.small import CLASSES, random_images, small_adapter, small_backbone

TOLERANCE = 2e-5
NAMES = st.lists(st.text("abc xyz_", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=5, unique_by=(
    lambda name: tuple(name.replace("_", " ").split())
))  # fmt: skip


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def losses_and_gradients(adapter, backbone, class_names, template, images, labels):
    """(loss, gradients) of the model, then of the oracle."""
    model, config = AdaptedCLIP(backbone, adapter, class_names, template), adapter.config
    trunk = model.image_tower.trunk(images)
    ours = mmrl_loss(
        model.from_trunk(trunk), labels, model.image_tower.zero_shot(trunk), model.zero_shot_text,
        alpha=config.alpha, reg_weight=config.reg_weight,
    ).total  # fmt: skip
    oracle = Oracle(backbone.clip, backbone.tokenizer, adapter, class_names, template)
    theirs = oracle.loss(images, labels, oracle.zero_shot(images)[1])
    for loss in (ours, theirs):
        gradients = torch.autograd.grad(loss, list(adapter.parameters()))
        yield loss.detach(), dict(zip(dict(adapter.named_parameters()), gradients, strict=True))


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
@pytest.mark.parametrize(("image_layers", "text_layers"), [(4, 4), (5, 3), (3, 5)])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n_tokens", [1, 4])
def test_features_logits_loss_and_gradients_equal_the_oracles(method, image_layers, text_layers, depth, n_tokens):
    backbone = small_backbone(image_layers, text_layers)
    adapter = small_adapter(backbone, method, insertion_depth=depth, n_tokens=n_tokens)
    images, labels, template = random_images(5), torch.tensor([0, 1, 2, 5, 4]), "a photo of a {}."
    out = AdaptedCLIP(backbone, adapter, CLASSES, template)(images)
    expected = Oracle(backbone.clip, backbone.tokenizer, adapter, CLASSES, template).forward(images)
    for name, value in expected.items():
        assert relative(getattr(out, name), value) < TOLERANCE, name
    (loss, gradients), (expected_loss, expected_gradients) = losses_and_gradients(
        adapter, backbone, CLASSES, template, images, labels
    )
    assert relative(loss, expected_loss) < TOLERANCE
    for name, gradient in expected_gradients.items():
        assert relative(gradients[name], gradient) < 10 * TOLERANCE, name


@settings(max_examples=25, deadline=None)
@given(names=NAMES, template=st.sampled_from(["{}", "a photo of a {}, a type of pet.", "{} texture.", "the {} {}"]))
def test_text_features_equal_the_oracles_for_any_class_list_and_template(names, template):
    backbone = small_backbone()
    adapter = small_adapter(backbone, "mmrlpp")
    model = AdaptedCLIP(backbone, adapter, names, template)
    oracle = Oracle(backbone.clip, backbone.tokenizer, adapter, names, template)
    assert relative(model.text_features(), oracle.text_features()) < TOLERANCE
    assert relative(model.zero_shot_text, oracle.zero_shot(random_images(1))[1]) < TOLERANCE


def test_towers_walked_without_tokens_equal_open_clips_own_encoders():
    backbone, images = small_backbone(5, 3), random_images(4)
    ids = backbone.tokenize(CLASSES, "a {}.")
    assert relative(backbone.encode_image(images), backbone.clip.encode_image(images, normalize=True)) < TOLERANCE
    assert relative(backbone.encode_text(CLASSES, "a {}."), backbone.clip.encode_text(ids, normalize=True)) < TOLERANCE


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_only_adapter_parameters_are_trainable_and_the_backbone_never_leaves_eval_mode(method):
    backbone = small_backbone()
    model = AdaptedCLIP(backbone, small_adapter(backbone, method), CLASSES, "a {}.").train()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"adapter.{name}" for name, _ in model.adapter.named_parameters()}
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [("mmrl", {}, 4_992_256), ("mmrlpp", {}, 813_312), ("mmrl", {"rep_dim": 2048}, 18_762_496)],
)
def test_trainable_counts_on_a_vit_b_16_are_the_published_ones(method, settings, count):
    with torch.device("meta"):
        clip = new_clip({
            "embed_dim": 512,
            "vision_cfg": {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224},
            "text_cfg": {"width": 512, "heads": 8, "layers": 12},
        })  # fmt: skip
    backbone = Backbone.from_clip(clip, name="ViT-B-16")
    assert Adapter(AdapterConfig(method=method, **settings), backbone).n_trainable == count


def test_low_rank_factors_start_so_that_mmrlpp_begins_at_the_shared_map():
    backbone = small_backbone()
    adapter = Adapter(AdapterConfig(method="mmrlpp", insertion_depth=2, rep_dim=16), backbone)
    aligner = adapter.image_aligner
    assert aligner.B.abs().max() == 0
    assert adapter.projection.B.abs().max() == 0
    assert aligner.A.abs().max() <= 4**-0.5  # kaiming_uniform(a = sqrt 5) over fan-in r
    assert torch.equal(aligner.bias[0], aligner.bias[1])
    expected = adapter.space @ aligner.weight.T + aligner.bias[0]
    assert torch.allclose(adapter.image_tokens()[1], expected)


def test_an_insertion_depth_beyond_the_shallower_tower_is_refused():
    with pytest.raises(UserError, match=r"insertion_depth 4 is beyond the 3 layers"):
        small_adapter(small_backbone(5, 3), insertion_depth=4)


@pytest.mark.parametrize(
    ("names", "template", "message"),
    [
        (["a_cat", "dog", "A cat"], "a {}.", "'a_cat' and 'A cat' make the same prompt"),
        ([], "a {}.", "empty"),
        (["cat"], "a photo.", "has no {}"),
    ],
)
def test_classes_that_make_no_distinct_prompts_are_refused(names, template, message):
    with pytest.raises(UserError, match=message):
        small_backbone().encode_text(names, template)


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ({"attentional_pool": "parallel"}, {}, "image tower is read in a way"),
        ({"layers": (1, 1, 1, 1)}, {}, "not a ViT"),
        ({"patch_dropout": 0.5}, {}, "drops patches"),
        ({"scale_heads": True}, {}, "image tower has CustomResidualAttentionBlock layers"),
        ({}, {"pool_type": "none"}, "text tower is read in a way"),
        ({}, {"scale_attn": True}, "text tower has CustomResidualAttentionBlock layers"),
    ],
)
def test_towers_the_method_does_not_cover_are_refused_by_name(vision, text, message):
    clip = new_clip({
        "embed_dim": 32,
        "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": 32, **vision},
        "text_cfg": {"width": 48, "heads": 4, "layers": 2, "context_length": 77, **text},
    })  # fmt: skip
    with pytest.raises(UserError, match=message):
        Backbone.from_clip(clip, name="odd")
