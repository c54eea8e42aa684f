"""Mixed precision: what runs in it, what does not, and how overflow ends."""

from copy import deepcopy

import pytest
import torch

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.precision import settle_precision
from mmrl_core.clip.towers import Frozen
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.errors import UserError
from mmrl_core.method.losses import mmrl_loss
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.checkpoints import Folder
from mmrl_core.training.fit import Run, fit, new_optimizer
from mmrl_core.training.step import Graphed, TrainingStep
from mmrl_core.training.whole import WholeStep
from tests.core.clip.test_feature_store import image_set
from tests.support.small import CLASSES, random_images, small_adapter, small_backbone

CPU = torch.device("cpu")


@pytest.mark.parametrize(("asked", "settled"), [("auto", "float32"), ("float32", "float32"), ("bf16", "bf16")])
def test_a_cpu_trains_in_float32_unless_bf16_is_asked_for(asked, settled):
    assert settle_precision(asked, CPU) == settled


def test_on_apples_gpus_auto_is_float32_and_fp16_is_refused():
    assert settle_precision("auto", torch.device("mps")) == "float32"
    with pytest.raises(UserError, match=r"fp16, which needs CUDA; set bf16, float32 or auto"):
        settle_precision("fp16", torch.device("mps"))


def test_fp16_on_a_cpu_is_refused_before_training():
    train = TrainConfig(precision="fp16")
    config = AdapterConfig(method="mmrl", insertion_depth=2)
    with pytest.raises(UserError, match=r"train.precision is fp16, which needs a GPU; set bf16, float32 or auto"):
        fit(small_backbone(), config, train, image_set())


def make_step(
    precision: str, method: str = "mmrlpp", lr: float = 1e-3, device: str = "cpu"
) -> tuple[TrainingStep, Frozen, torch.Tensor]:
    backbone = deepcopy(small_backbone()).to(device)  # the other tests' stays where it is
    adapter = small_adapter(backbone, method).to(device)
    model = AdaptedCLIP(backbone, adapter, CLASSES, "a {}.", precision)
    step = TrainingStep(model, [new_optimizer(adapter, lr)], precision)
    if precision == "fp16":
        step.scalers[0] = torch.amp.GradScaler(device, init_scale=64.0)  # the usual first scale overflows a few times
    frozen = model.image_tower.frozen(random_images(5).to(device))
    return step, frozen, torch.tensor([0, 1, 2, 5, 4], device=device)


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_loss_and_gradients_are_those_of_float32_but_for_rounding(precision, method):
    found = {}
    for name in ("float32", precision):
        step, frozen, labels = make_step(name, method)
        terms = step._passes(*frozen, labels)
        scale = step.scalers[0].get_scale() if step.scalers[0].is_enabled() else 1.0
        found[name] = terms, torch.cat([p.grad.flatten() / scale for p in step.parameters[0]])
    (terms, gradients), (low_terms, low_gradients) = found["float32"], found[precision]
    assert torch.allclose(low_terms[:5], terms[:5], rtol=0.05, atol=0.02)
    assert torch.nn.functional.cosine_similarity(gradients, low_gradients, dim=0) > 0.99
    assert not torch.equal(low_gradients, gradients)


def test_only_products_and_what_is_stored_run_in_low_precision():
    step, frozen, _ = make_step("bf16")
    model = step.model
    assert frozen.trunk.dtype == torch.bfloat16
    out = model.from_trunk(frozen.trunk)
    given = [*filter(torch.is_tensor, out), frozen.zero_shot, model.zero_shot_text]
    assert {tensor.dtype for tensor in given} == {torch.float32}
    assert {p.dtype for p in [*model.adapter.parameters(), *model.backbone.parameters()]} == {torch.float32}
    block = model.image_tower.blocks[0]
    assert {block.qkv.weight.dtype, block.mlp.fc.bias.dtype} == {torch.bfloat16}
    assert block.ln_1.weight.dtype == torch.float32


def test_a_backbone_first_used_for_inference_can_still_train():
    backbone = Backbone.from_clip(small_backbone().clip, name="small")
    with torch.inference_mode():
        AdaptedCLIP(backbone, small_adapter(backbone), CLASSES, "a {}.", "bf16").image_tower.trunk(random_images(2))
    config = AdapterConfig(method="mmrl", insertion_depth=2)
    assert fit(backbone, config, TrainConfig(epochs=1, precision="bf16"), image_set()).history


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_steps_lower_the_loss_in_every_precision(precision):
    step, frozen, labels = make_step(precision, lr=3e-3)
    terms = torch.stack([step(frozen, labels) for _ in range(12)])
    rows = step.check(0, terms)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["gradient_norm"] > 0 for row in rows)


def test_the_terms_of_a_step_are_those_of_the_loss_before_it():
    step, frozen, labels = make_step("float32")
    model, config = step.model, step.model.adapter.config
    out = model.from_trunk(frozen.trunk)
    expected = mmrl_loss(
        out, labels, frozen.zero_shot, model.zero_shot_text, alpha=config.alpha, reg_weight=config.reg_weight
    )
    row = step.check(0, step(frozen, labels)[None])[0]
    assert [row[name] for name in expected._fields] == pytest.approx([float(term.detach()) for term in expected])
    assert row["loss"] == pytest.approx(float(expected.total.detach()))
    assert row["train_accuracy"] == pytest.approx(float((out.logits_fused.argmax(-1) == labels).float().mean()))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gradient_that_is_no_number_stops_training_though_every_loss_is_finite(precision):
    step, frozen, labels = make_step(precision)
    parameter = step.model.adapter.projection.A
    parameter.register_hook(lambda gradient: gradient * torch.nan)
    terms = step(frozen, labels)[None]
    with pytest.raises(UserError, match=r"diverged at epoch 3 step 0: gradient_norm is nan; lower train.lr"):
        step.check(3, terms)


def test_an_overflow_in_fp16_skips_the_step_and_lowers_the_scale():
    step, frozen, labels = make_step("fp16")
    before = {name: tensor.clone() for name, tensor in step.model.adapter.state_dict().items()}
    step.scalers[0] = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    row = step.check(0, step(frozen, labels)[None])[0]
    assert step.scalers[0].get_scale() == 2.0**99
    assert row["gradient_norm"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.adapter.state_dict().items())


def test_fp16_gradients_that_overflow_at_every_scale_stop_training():
    step, frozen, labels = make_step("fp16")
    step.parameters[0][0].register_hook(lambda gradient: gradient * torch.inf)
    terms = torch.stack([step(frozen, labels) for _ in range(8)])
    with pytest.raises(UserError, match=r"diverged at epoch 1: fp16 gradients overflow; set train.precision: bf16"):
        step.check(1, terms)


def test_the_scale_survives_a_checkpoint(tmp_path):
    Run(make_step("fp16")[0], None, [TrainConfig()], Folder(tmp_path))._save(1)
    other = make_step("fp16")[0]
    other.scalers[0] = torch.amp.GradScaler("cpu", init_scale=4.0)
    run = Run(other, None, [TrainConfig()], Folder(tmp_path))
    run._restore()
    assert run.histories == [[]] and other.scalers[0].get_scale() == 64.0


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@cuda
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_replayed_graph_takes_the_steps_that_launched_kernels_take(precision):
    ends = []
    for graphed in (True, False):
        step, frozen, labels = make_step(precision, device="cuda")
        if not graphed:
            step._run = step._passes
        for _ in range(4):
            step(frozen, labels)
        assert isinstance(step._run, Graphed if precision == "fp16" else WholeStep) is graphed
        ends.append(torch.cat([p.detach().flatten() for p in step.parameters[0]]))
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-4)
