"""What the towers share, cut and compute in chunks changes nothing, and keeps memory bounded."""

import functools

import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock

from mmrl_core.clip import towers
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.blocks import run
from mmrl_core.clip.families.open_clip_blocks import freeze, quick_gelu
from mmrl_core.clip.text_tower import SharedPrefix, WholePrompts
from mmrl_core.clip.towers import ImageTower, in_chunks
from tests.oracle import Oracle
from tests.support.architectures import cut, form_of
from tests.support.small import random_images, small_adapter, small_backbone

NAMES = [f"{colour} {thing}" for colour in ("red", "blue", "very dark green") for thing in ("cat", "old house", "dog")]
TOLERANCE = 2e-5


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def text_and_gradients(tower: SharedPrefix, adapter) -> tuple[torch.Tensor, list[torch.Tensor]]:
    adapter.zero_grad()
    features = tower.adapted(adapter.text_tokens(), adapter.config.composition)
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    (features * weights).sum().backward()
    return features.detach(), [p.grad.clone() for p in adapter.text_aligner.parameters()]


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 20])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_classes_in_recomputed_chunks_give_the_features_and_gradients_of_one_pass(method, chunk_tokens, depth):
    backbone = small_backbone()
    adapter = small_adapter(backbone, method, insertion_depth=depth)
    whole = SharedPrefix(backbone, NAMES, "a {}.", adapter.n_insert)
    parts = SharedPrefix(backbone, NAMES, "a {}.", adapter.n_insert, chunk_tokens=chunk_tokens)
    assert len(whole.packings) == 1 < len(parts.packings)
    assert relative(parts.zero_shot(), whole.zero_shot()) < TOLERANCE
    features, gradients = text_and_gradients(whole, adapter)
    other_features, other_gradients = text_and_gradients(parts, adapter)
    assert relative(other_features, features) < TOLERANCE
    for one, other in zip(gradients, other_gradients, strict=True):
        assert relative(other, one) < 10 * TOLERANCE


@functools.cache
def backbone_of(name: str) -> Backbone:
    clip, tokenizer = cut(form_of(name))
    return Backbone.from_clip(clip, name=name, tokenizer=tokenizer)


def kept_bytes(n_classes: int, chunk_tokens: int, name: str | None = None) -> int:
    """What autograd keeps between the passes over the classes, features and index tables apart."""
    backbone = backbone_of(name) if name else small_backbone()
    adapter = small_adapter(backbone, "mmrlpp")
    names = [f"{a} {b} {c}" for a in NAMES[:4] for b in NAMES for c in NAMES][:n_classes]
    names = [f"thing{place} {place}" for place in range(n_classes)] if name else names  # whose prompts have few tokens
    kind = WholePrompts if name else SharedPrefix
    tower = kind(backbone, names, "a {}.", adapter.n_insert, chunk_tokens=chunk_tokens)
    constants = {tensor.untyped_storage().data_ptr() for tensor in tower.buffers()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in constants:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = tower.adapted(adapter.text_tokens(), adapter.config.composition)
    return sum(kept.values()) - 2 * features.untyped_storage().nbytes()


@pytest.mark.parametrize("name", [None, "ViT-B-16-SigLIP"])
def test_what_the_text_tower_keeps_for_backward_does_not_grow_with_the_classes_beyond_a_chunk(name):
    few, many = kept_bytes(40, 100, name), kept_bytes(320, 100, name)
    assert many < 1.2 * few
    assert kept_bytes(320, 10**6, name) > 5 * kept_bytes(40, 10**6, name)  # the measure does see what one pass keeps


@pytest.mark.parametrize("layer_scale", [None, 0.3])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_frozen_block_is_open_clips_block_with_its_gradient(activation, layer_scale):
    torch.manual_seed(0)
    act = QuickGELU if activation == "quick_gelu" else torch.nn.GELU
    block = ResidualAttentionBlock(32, 4, act_layer=act, ls_init_value=layer_scale)
    x = torch.randn(3, 7, 32, requires_grad=True)
    upstream = torch.randn(3, 7, 32)
    ours = run(freeze(block, torch.float32), x)
    theirs = block(x)
    assert relative(ours, theirs) < TOLERANCE
    gradients = [torch.autograd.grad(y, x, upstream)[0] for y in (ours, theirs)]
    assert relative(*gradients) < TOLERANCE


def kept_for(function, x: torch.Tensor) -> int:
    """Bytes that autograd keeps of one call, those of x among them where it keeps x."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x)  # which holds what is kept: freed memory would be counted once for two
    assert y.requires_grad
    return sum(kept.values())


def test_quick_gelu_keeps_one_inner_value_and_has_the_gradient_of_its_formula():
    x = torch.linspace(-9, 9, 240).reshape(2, 3, 40).requires_grad_()
    upstream = torch.linspace(-1, 1, 240).reshape(2, 3, 40)
    formula = QuickGELU()
    assert kept_for(quick_gelu, x) == x.nbytes < kept_for(formula, x)  # which keeps x and the sigmoid
    assert torch.equal(quick_gelu(x), formula(x))
    ours, theirs = (torch.autograd.grad(one(x), x, upstream)[0] for one in (quick_gelu, formula))
    assert relative(ours, theirs) < 1e-6
    assert torch.autograd.gradcheck(quick_gelu, x.detach().double().requires_grad_())
    frozen = freeze(ResidualAttentionBlock(32, 4, act_layer=QuickGELU), torch.float32)
    assert frozen.mlp.activation is quick_gelu


@pytest.mark.parametrize("act", [QuickGELU, torch.nn.GELU])
def test_a_block_frozen_in_low_precision_is_the_block_but_for_rounding(act):
    torch.manual_seed(0)
    block, x = ResidualAttentionBlock(32, 4, act_layer=act), torch.randn(3, 7, 32)
    with torch.no_grad():
        assert relative(run(freeze(block, torch.bfloat16), x), block(x)) < 0.02


def test_float32_blocks_share_their_weights_with_the_backbone_and_are_made_once():
    backbone = small_backbone()
    blocks = backbone.frozen_blocks("image", torch.float32)
    assert blocks is backbone.frozen_blocks("image", torch.float32)
    assert blocks[0].mlp.fc.weight.data_ptr() == backbone.image_blocks[0].mlp.c_fc.weight.data_ptr()


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_images_in_chunks_give_what_the_oracle_gives_for_all_at_once(method, quick_gelu, monkeypatch):
    backbone = small_backbone(quick_gelu=quick_gelu)
    adapter = small_adapter(backbone, method)
    tower, images = ImageTower(backbone, adapter.n_insert), random_images(7)
    monkeypatch.setattr(towers, "CHUNK_TOKENS", 10)  # two images
    assert tower.chunk(7) == 2
    rows, slots = tower.adapted(tower.trunk(images), adapter.image_tokens(), adapter.config.composition)
    f_c, f_r = Oracle(backbone.clip, backbone.tokenizer, adapter, NAMES, "a {}.").image_features(images)
    assert relative(torch.nn.functional.normalize(tower.proj(rows), dim=-1), f_c) < TOLERANCE
    by_rep = adapter.projection(slots, tower.proj)
    assert relative(torch.nn.functional.normalize(by_rep, dim=-1), f_r) < TOLERANCE


@pytest.mark.parametrize(("n", "size"), [(1, 3), (3, 3), (7, 3), (6, 3), (2, 5)])
def test_every_chunk_is_of_the_same_size_and_filling_up_leaves_no_trace(n, size):
    seen = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return 2 * x

    x = torch.arange(float(n))[:, None]
    assert torch.equal(in_chunks(double, x, size), 2 * x)
    assert set(seen) == {size}


@pytest.mark.parametrize(
    ("tokens", "batch", "chunk"),
    [(197, 4, 4), (197, 8, 8), (197, 9, 5), (197, 32, 8), (197, 33, 7), (257, 16, 4), (257, 32, 4), (17, 200, 67)],
)
def test_a_batch_is_divided_into_nearly_equal_chunks_of_a_size_that_suits_a_cpu_with_little_to_fill_up(
    tokens, batch, chunk
):
    class Shape:
        device, image_tokens = torch.device("cpu"), tokens

    tower = object.__new__(ImageTower)
    tower.backbone = Shape()
    assert tower.chunk(batch) == chunk
