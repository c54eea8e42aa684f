"""The golden vectors of the published code's behaviour. These tests never skip."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.clip.backbone import Backbone, new_clip
from mmrl_core.config import AdapterConfig
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.losses import mmrl_loss
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.method.published_checkpoints import to_adapter_state
from mmrl_core.training.fit import new_optimizer

GOLDEN = Path(__file__).parents[2] / "golden"
FORWARD, GRADIENT, TRAJECTORY = 1e-4, 5e-4, 1e-3


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach() - b).abs().max() / b.abs().max())


@functools.cache
def golden_backbone() -> Backbone:
    """The frozen CLIP that both methods' vectors share."""
    arch = json.loads((GOLDEN / "mmrl.json").read_text())["arch"]
    clip = new_clip(
        {
            "embed_dim": arch["embed"],
            "vision_cfg": {
                "layers": arch["vl"], "width": arch["vw"], "head_width": 64,
                "patch_size": arch["patch"], "image_size": arch["res"],
            },
            "text_cfg": {"width": arch["tw"], "heads": arch["tw"] // 64, "layers": arch["tl"]},
            "quick_gelu": True,
        }
    )  # fmt: skip
    state = {name: torch.from_numpy(array).float() for name, array in np.load(GOLDEN / "clip.npz").items()}
    clip.load_state_dict(state)
    return Backbone.from_clip(clip, name="golden")


class Case:
    """One method's settings, tensors and model, the learnables at `init`."""

    def __init__(self, method: str):
        self.settings = json.loads((GOLDEN / f"{method}.json").read_text())
        self.tensors = load_file(GOLDEN / f"{method}.safetensors")
        self.backbone = golden_backbone()
        settings = self.settings
        config = AdapterConfig(
            method=method, insertion_depth=settings["rep_layers"][0], n_tokens=settings["n_rep_tokens"],
            rep_dim=settings["rep_dim"], residual_rank=settings["res_rank"], projection_rank=settings["proj_rank"],
            alpha=settings["alpha"], beta=settings["beta"], reg_weight=settings["reg_weight"],
        )  # fmt: skip
        self.adapter = Adapter(config, self.backbone)
        self.adapter.load_published(self.group("init."))
        self.model = AdaptedCLIP(self.backbone, self.adapter, settings["classnames"], settings["template"])

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.settings["batch"]
        rows = slice(index * size, (index + 1) * size)
        return self.tensors["input.images"][rows], self.tensors["input.labels"][rows]

    def loss(self, index: int) -> torch.Tensor:
        images, labels = self.batch(index)
        trunk = self.model.image_tower.trunk(images)
        config = self.adapter.config
        return mmrl_loss(
            self.model.from_trunk(trunk), labels, self.model.image_tower.zero_shot(trunk), self.model.zero_shot_text,
            alpha=config.alpha, reg_weight=config.reg_weight,
        ).total  # fmt: skip


@pytest.fixture(params=["mmrl", "mmrlpp"])
def case(request):
    return Case(request.param)


def test_the_tokenizer_gives_the_golden_token_ids(case):
    ids = case.backbone.tokenize(case.settings["classnames"], case.settings["template"])
    assert torch.equal(ids, case.tensors["input.token_ids"].long())


def test_zero_shot_features_are_the_frozen_clips(case):
    images = case.backbone.encode_image(case.tensors["input.images"])
    text = case.backbone.encode_text(case.settings["classnames"], case.settings["template"])
    assert relative(images, case.tensors["zero_shot.image_features"]) < FORWARD
    assert relative(text, case.tensors["zero_shot.text_features"]) < FORWARD


def test_forward_pass_and_loss_are_the_published_ones(case):
    out = case.model(case.batch(0)[0])
    names = {
        "image_features": out.image_features, "text_features": out.text_features, "logits": out.logits_class,
        "logits_rep": out.logits_rep, "logits_fusion": out.logits_fused, "loss": case.loss(0),
    }  # fmt: skip
    expected = case.group("forward.")
    assert expected.keys() == names.keys()
    for name, value in expected.items():
        assert relative(names[name], value) < FORWARD, name


def test_gradients_are_the_published_ones(case):
    case.loss(0).backward()
    expected = to_adapter_state(case.group("grad."), case.adapter.config.method)
    gradients = {name: parameter.grad for name, parameter in case.adapter.named_parameters()}
    assert expected.keys() == gradients.keys()
    for name, value in expected.items():
        assert relative(gradients[name], value) < GRADIENT, name


def test_a_training_trajectory_ends_where_the_published_one_does(case):
    optimizer = new_optimizer(case.adapter, lr=1e-3)
    losses = []
    for step in range(case.settings["steps"]):
        loss = case.loss(step % 2)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert relative(torch.stack(losses), case.tensors["trajectory.losses"]) < TRAJECTORY
    final = to_adapter_state(case.group("trajectory.final."), case.adapter.config.method)
    for name, value in final.items():
        assert relative(case.adapter.state_dict()[name], value) < TRAJECTORY, name
    out = case.model(case.tensors["input.images"])
    for name, logits in (("logits", 0), ("logits_rep", 1), ("logits_fusion", 2)):
        assert relative(out[logits], case.tensors[f"eval.{name}"]) < TRAJECTORY, name


def test_the_trainable_count_is_the_published_one(case):
    assert case.adapter.n_trainable == case.settings["trainable"]
