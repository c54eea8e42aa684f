"""What a GPU's step is recorded from, as far as a CPU can tell: that recording leaves no trace, and what is cast."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.support.cases import Case, drawn_features, model_of
from mmrl_core.clip.graphs import FrozenPass
from mmrl_core.clip.towers import ImageTower
from mmrl_core.training.fit import new_optimizer
from mmrl_core.training.step import TrainingStep
from mmrl_core.training.whole import reading, untouched
from tests.support.small import random_images, small_backbone


def trained(steps: int, method: str = "mmrl", precision: str = "float32"):
    """A step after so many, and what it takes."""
    case = Case(small_backbone(), method, classes=6, batch=4)
    model = model_of(case, case.adapter(), precision)
    step = TrainingStep(model, [new_optimizer(model.adapter, 1e-3)], precision)
    torch.manual_seed(0)
    inputs = drawn_features(case, model.dtype), torch.arange(4)
    for _ in range(steps):
        step(*inputs)
    return step, inputs


def state_of(step: TrainingStep) -> list[torch.Tensor]:
    moments = [value for own in step.optimizers[0].state.values() for value in own.values()]
    return [tensor.detach().clone() for tensor in (*step.parameters[0], *moments)]


@pytest.mark.parametrize("before", [0, 2])
def test_steps_that_warm_a_recording_up_leave_parameters_and_moments_as_they_were(before):
    (plain, inputs), (step, _) = trained(before), trained(before)
    places = [parameter.data_ptr() for parameter in step.parameters[0]]
    with untouched(step.optimizers):
        for _ in range(3):
            step(*inputs)
        moments = [value.data_ptr() for own in step.optimizers[0].state.values() for value in own.values()]
    assert places == [parameter.data_ptr() for parameter in step.parameters[0]]
    for one in (plain, step):
        one(*inputs)
    assert all(map(torch.equal, state_of(plain), state_of(step)))
    assert moments == [value.data_ptr() for own in step.optimizers[0].state.values() for value in own.values()]


def test_a_recorded_update_reads_its_learning_rate_when_it_runs_and_a_checkpoint_holds_a_number():
    (plain, inputs), (step, _) = trained(1), trained(1)
    rate = torch.tensor(0.5)
    with reading([rate], step.optimizers):
        assert all(group["lr"] is rate and group["capturable"] for group in step.optimizers[0].param_groups)
        rate.fill_(1e-3)
        step(*inputs)
    plain(*inputs)
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(state_of(plain), state_of(step), strict=True))
    assert {(group["lr"], group["capturable"]) for group in step.optimizers[0].param_groups} == {(1e-3, False)}


class Casts(TorchDispatchMode):
    """Counts tensors that change their type, by their size."""

    def __init__(self):
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._to_copy.default:
            self.shapes[tuple(args[0].shape)] += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_no_weight_is_cast_in_a_step_and_each_layer_s_activations_a_bounded_number_of_times(method):
    step, inputs = trained(1, method, "bf16")
    model = step.model
    with Casts() as found:
        step(*inputs)
    blocks = [*model.image_tower.blocks, *model.text_tower.upper]
    weights = [tensor for block in blocks for tensor in (block.qkv.weight, block.mlp.fc.weight, block.mlp.proj.weight)]
    shapes = {tuple(tensor.shape) for tensor in (*weights, *step.parameters[0])}
    assert not shapes & found.shapes.keys()
    # Into a layer's two products and back, with both branches' gradients, 8; a CPU's attention in float32, 7 more.
    passes = model.image_tower.backbone.depth - model.image_tower.first + 2 * len(model.text_tower.upper)
    assert found.shapes.total() <= 15 * passes


def test_without_a_gpu_frozen_features_are_the_tower_s_own():
    backbone = small_backbone()
    tower, views = ImageTower(backbone, 2), random_images(5)
    assert all(map(torch.equal, FrozenPass(tower, 2)(views), tower.frozen(views, 2)))
