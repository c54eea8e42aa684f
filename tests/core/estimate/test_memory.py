"""The formulas of what a step keeps, against what torch keeps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.support.cases import class_names
from benchmarks.support.memory import peak_of
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.shapes import Tower
from mmrl_core.clip.towers import Frozen
from mmrl_core.config import AdapterConfig
from mmrl_core.estimate.fits import shape_of_loaded
from mmrl_core.estimate.memory import chunked_suffix_bytes, image_bytes, kinds, prefix_bytes
from mmrl_core.estimate.training import Case, estimate
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.fit import new_adapter, new_optimizer
from mmrl_core.training.step import TrainingStep
from tests.support.small import small_backbone

# Layers and widths of both towers, image size, QuickGELU; then J, K, B and C.
SHAPES = {
    "square": ((4, 4, 64, 48, 64, False), (2, 5, 4, 50)),
    "unequal, QuickGELU": ((6, 4, 96, 128, 96, True), (1, 3, 2, 200)),
    "wide": ((3, 3, 128, 64, 128, False), (2, 8, 3, 20)),
}


def model_of(backbone: Backbone, config: AdapterConfig, classes: int, precision: str = "float32") -> AdaptedCLIP:
    adapter = new_adapter(config, backbone, 0)
    return AdaptedCLIP(backbone, adapter, class_names(classes), "a photo of a {}.", precision)


def own_storages(model: AdaptedCLIP) -> set[int]:
    """Of the weights, which are not kept for a backward pass but there anyway."""
    tensors = [*model.backbone.parameters(), *model.adapter.parameters()]
    for tower in ("image", "text"):
        tensors += tensors_in(tuple(model.backbone.frozen_blocks(tower, model.dtype)))
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def tensors_in(parts: object) -> list[Tensor]:
    if isinstance(parts, tuple):
        return [tensor for part in parts for tensor in tensors_in(part)]
    return [parts] if isinstance(parts, Tensor) else []


def kept_bytes(model: AdaptedCLIP, work: Callable[[], object]) -> int:
    """Of all that autograd keeps of some work, each storage once."""
    mine, kept = own_storages(model), {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    assert result is not None
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_step_keeps_is_what_the_formulas_say(shape, precision, method):
    (images, texts, image_width, text_width, size, quick), (j, k, batch, classes) = SHAPES[shape]
    backbone = small_backbone(images, texts, image_width, text_width, image_size=size, quick_gelu=quick)
    config = AdapterConfig(method=method, insertion_depth=j, n_tokens=k, rep_dim=32)
    model, n, of = (
        model_of(backbone, config, classes, precision),
        backbone.depth - j + 1,
        kinds(precision, "cpu"),
    )
    trunk = torch.randn(batch, backbone.image_tokens, image_width).to(model.dtype)

    image = Tower(image_width, images, image_width // 16, backbone.image_tokens, 4 * image_width)
    kept = kept_bytes(model, lambda: model.image_tower.adapted(trunk, model.adapter.image_tokens(), config.composition))
    assert image_bytes(image, batch, n, k, method == "mmrlpp", of) == pytest.approx(kept, rel=0.04)

    text, prefix = Tower(text_width, texts, 4, 77, 4 * text_width), model.text_tower.prefix.shape[1] + k
    kept = kept_bytes(model, lambda: model.text_tower.adapted(model.adapter.text_tokens(), config.composition))
    own = chunked_suffix_bytes(text, model.text_tower.packings, prefix, n, backbone.embed_dim, of)
    assert prefix_bytes(text, prefix, n, of) + own == pytest.approx(kept, rel=0.04)


def test_the_peak_of_a_real_step_is_what_is_estimated_and_never_below_what_is_certain():
    backbone = small_backbone(4, 4, 192, 64, image_size=160)
    config = AdapterConfig(method="mmrlpp", insertion_depth=2, n_tokens=5, rep_dim=32)
    model = model_of(backbone, config, 20)
    step = TrainingStep(model, [new_optimizer(model.adapter, 1e-4)], "float32")
    frozen = Frozen(torch.randn(24, backbone.image_tokens, 192), torch.randn(24, backbone.embed_dim))
    labels = torch.zeros(24, dtype=torch.long)
    step(frozen, labels)  # the optimizer's moments are there from then on
    peak = peak_of(lambda: step(frozen, labels))
    said = estimate(Case(shape_of_loaded(backbone), config, 24, 20)).memory
    kept = said.image_activations + said.text_activations
    assert 30e6 < kept < 100e6
    if peak is not None:  # Linux says it
        assert 0.9 * kept < peak < 1.5 * (kept + said.working)
