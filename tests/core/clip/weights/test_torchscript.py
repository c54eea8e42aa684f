"""TorchScript archives are read as torch reads them, and nothing in them runs."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from mmrl_core.clip.weights.torchscript import is_torchscript, read_tensors


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.linear = nn.MultiheadAttention(4, 2), nn.Linear(4, 3, bias=False).half()
        self.scale = nn.Parameter(torch.ones([]))
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)  # not contiguous
        self.register_buffer("steps", torch.tensor(5))
        self.plain = torch.ones(3)  # no parameter and no buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.plain.sum()


class Runs(nn.Module):
    """Its TorchScript writes the file `ran` while torch loads it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = torch.from_file("ran", True, 4).fill_(1.0)
        self.training = state[1]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights.pt"


def test_the_tensors_of_an_archive_are_those_that_torch_finds(archive):
    torch.manual_seed(0)
    torch.jit.trace(nn.Sequential(Block(), Block()), torch.zeros(2, 3)).save(archive)
    theirs = torch.jit.load(archive).state_dict()
    ours = read_tensors(archive)
    assert is_torchscript(archive) and ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])


def test_torchscript_that_runs_when_torch_loads_it_does_not_run_here(archive):
    torch.jit.script(Runs()).save(archive)
    assert read_tensors(archive) == {}
    assert not Path("ran").exists()
    torch.jit.load(archive)
    assert Path("ran").exists()


def test_python_in_the_pickle_of_an_archive_is_refused_and_does_not_run(archive):
    class Bomb:
        def __reduce__(self):
            return (open, ("ran", "w"))

    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("weights/data.pkl", pickle.dumps(Bomb(), protocol=2))
        file.writestr("weights/constants.pkl", b"")
    with pytest.raises(pickle.UnpicklingError, match="open"):
        read_tensors(archive)
    assert not Path("ran").exists()


def test_other_files_are_no_archives(archive):
    archive.write_bytes(b"weights")
    assert not is_torchscript(archive)
    torch.save({"weight": torch.ones(2)}, archive)
    assert not is_torchscript(archive)
