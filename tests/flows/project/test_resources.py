import pytest
import torch

from flows.project.resources import (
    backbone_for,
    device_here,
    device_name,
    gpu_facts,
    trial_backbone,
    weights_digest,
)
from flows.settings.params import DEFAULT_PARAMS, Params, params_or_shipped
from flows.settings.sections import BackboneSection, ClusterSection
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file


def test_what_depends_on_a_folders_weights_sees_them_change(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(b"one")
    section = BackboneSection(name=f"local-dir:{tmp_path}")
    assert weights_digest(section) == sha256_file(weights)
    weights.write_bytes(b"other")
    assert weights_digest(section) == sha256_file(weights)
    assert weights_digest(BackboneSection(name="hf-hub:org/name")) is None
    assert weights_digest(BackboneSection(name="tiny")) is not None


def settings(**changes) -> Params:
    return params_or_shipped(DEFAULT_PARAMS).model_copy(update=changes)


def test_the_device_is_the_one_that_is_set_and_one_that_is_not_there_is_told_in_a_line():
    assert backbone_for(settings(device="cpu")).device.type == "cpu"
    assert device_here("cpu").type == "cpu" and device_here("auto").type in ("cpu", "cuda")
    absent = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(
        UserError, match=f"^device is {absent}, and PyTorch finds none here; set device to auto or cpu$"
    ):
        backbone_for(settings(device=absent))


def test_a_cluster_and_trials_have_the_gpus_that_they_are_given():
    absent = "mps" if torch.cuda.is_available() else "cuda"
    cluster = ClusterSection(address="auto", workers=2)
    assert device_name(settings(device=absent, cluster=cluster)) == "auto"
    assert trial_backbone(settings(device=absent)).device.type in ("cpu", "cuda")
    assert trial_backbone(settings(device="cpu")).device.type == "cpu"


def test_what_is_made_ahead_on_one_device_is_not_taken_for_that_of_another():
    assert len({str(gpu_facts(device)) for device in ("auto", "cpu", "cuda")}) == 3
    assert gpu_facts() == gpu_facts("auto")
