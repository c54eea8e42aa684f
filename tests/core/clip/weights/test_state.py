"""Files of weights as trainings leave them, and files that are something else."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mmrl_core.clip.backbone import load_backbone, new_clip
from mmrl_core.clip.weights.pretrained import load_clip
from mmrl_core.errors import UserError
from tests.core.clip.weights.test_pretrained import SHAPE

NAME = "mmrl-test-state"
ADAPTER = Path(__file__).parents[3] / "golden/registered_before_the_move/model/artifacts/seed1"


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{NAME}.json").write_text(json.dumps(SHAPE))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return new_clip(SHAPE)


@pytest.fixture(scope="module")
def digest(clip, tmp_path_factory):
    """Of the weights, as the plain file has them."""
    path = tmp_path_factory.mktemp("plain") / "plain.pt"
    torch.save(clip.state_dict(), path)
    return load_backbone(NAME, str(path)).weights_sha256


class Trained(torch.nn.Module):
    """A CLIP within a module of somebody's own, as Lightning's are saved."""

    def __init__(self, clip):
        super().__init__()
        self.model = clip


def compiled_and_parallel(clip):
    return torch.nn.DataParallel(torch.compile(clip)), torch.compile(torch.nn.DataParallel(clip))


KINDS = {
    "DataParallel": lambda clip: torch.nn.DataParallel(clip).state_dict(),
    "compiled": lambda clip: torch.compile(clip).state_dict(),
    "compiled, then parallel": lambda clip: compiled_and_parallel(clip)[0].state_dict(),
    "parallel, then compiled": lambda clip: compiled_and_parallel(clip)[1].state_dict(),
    "in a module of one's own": lambda clip: Trained(torch.compile(clip)).state_dict(),
    "open_clip's training": lambda clip: {"epoch": 3, "name": "run", "optimizer": {"state": {}},
                                          "state_dict": torch.nn.DataParallel(clip).state_dict()},
    "another training": lambda clip: {"step": 3, "model_state_dict": clip.state_dict()},
    "without a dimension": lambda clip: {**clip.state_dict(), "logit_scale": clip.logit_scale.detach().reshape(1)},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_weights_load_however_a_training_saved_them(clip, digest, tmp_path, kind):
    torch.save(KINDS[kind](clip), tmp_path / "weights.pt")
    assert load_backbone(NAME, str(tmp_path / "weights.pt")).weights_sha256 == digest


def test_safetensors_of_a_wrapped_model_load_as_well(clip, digest, tmp_path):
    state = {name: tensor.clone() for name, tensor in compiled_and_parallel(clip)[0].state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    assert load_backbone(NAME, str(tmp_path / "weights.safetensors")).weights_sha256 == digest


def test_a_text_tower_in_a_module_of_its_own_loads_into_one_that_has_none(clip, digest, tmp_path):
    custom = open_clip.CustomTextCLIP(**SHAPE)
    custom.load_state_dict(open_clip.factory.convert_to_custom_text_state_dict(clip.state_dict()))
    torch.save(custom.state_dict(), tmp_path / "weights.pt")
    assert load_backbone(NAME, str(tmp_path / "weights.pt")).weights_sha256 == digest


def optimizer(clip) -> dict:
    stepped = torch.optim.Adam(clip.parameters())
    return stepped.state_dict()


def two_sets(clip) -> dict:
    return {**clip.state_dict(), **torch.nn.DataParallel(clip).state_dict()}


def without(clip, name: str) -> dict:
    return {own: tensor for own, tensor in clip.state_dict().items() if own != name}


OTHERS = {
    "it is the state of an optimizer": optimizer,
    "it holds epoch, optimizer, not weights alone": lambda clip: {"epoch": 1, "optimizer": optimizer(clip)},
    "it holds nothing": lambda clip: {},
    "it holds a list, not weights by name": lambda clip: [torch.ones(1)],
    "two sets of weights whose names differ in `module.`": two_sets,
    "it is an image tower alone": lambda clip: clip.visual.state_dict(),
    "it is an image tower alone, ": lambda clip: {f"visual.{name}": tensor
                                                 for name, tensor in clip.visual.state_dict().items()},
    "it is a LoRA without the model": lambda clip: {"base_model.model.visual.proj.lora_A.weight": torch.ones(1)},
    "no CLIP of open_clip's: its tensors are called ": lambda clip: torch.nn.BatchNorm1d(3).state_dict(),
    "it lacks visual.proj": lambda clip: without(clip, "visual.proj"),
    "it has loss.weight, which the model has not": lambda clip: {**clip.state_dict(), "loss.weight": torch.ones(1)},
    "its visual.ln_post.bias is (3,), not (64,)": lambda clip: {**clip.state_dict(),
                                                               "visual.ln_post.bias": torch.ones(3)},
    "its visual.proj is torch.int8: quantised": lambda clip: {**clip.state_dict(),
                                                              "visual.proj": clip.state_dict()["visual.proj"].char()},
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_any_other_file_is_told_what_it_is(clip, tmp_path, what):
    torch.save(OTHERS[what](clip), tmp_path / "weights.pt")
    with pytest.raises(UserError) as raised:
        load_clip(NAME, str(tmp_path / "weights.pt"))
    assert what in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_files_of_other_kinds_are_told_what_they_are(tmp_path):
    adapter = ADAPTER / "adapter.safetensors"
    with pytest.raises(UserError, match="it is an adapter of this project, not a backbone; name the CLIP that"):
        load_clip(NAME, str(adapter))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(UserError, match="it is JSON; of a list of shards name the folder, as .* local-dir:FOLDER"):
        load_clip(NAME, str(index))
    (tmp_path / "siglip.npz").write_bytes(b"")
    with pytest.raises(UserError, match="it is NumPy's, as big_vision saves SigLIPs, and only those"):
        load_clip(NAME, str(tmp_path / "siglip.npz"))
