"""Checkpoints of the authors' code: their tensor names, and the settings that their shapes imply."""

import re
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mmrl_core.errors import UserError

LEARNER = "representation_learner."


def to_adapter_state(published: dict[str, Tensor], method: str) -> dict[str, Tensor]:
    """The authors' tensors under this project's names, per-layer ones stacked. Raises UserError when one is missing."""
    published = {name.removeprefix("module."): tensor for name, tensor in published.items()}
    state = {"space": _get(published, LEARNER + "compound_rep_tokens")}
    for tower, letter in (("image", "v"), ("text", "t")):
        convert = _linear_aligner if method == "mmrl" else _shared_residual_aligner
        aligner = convert(published, letter)
        state |= {f"{tower}_aligner.{name}": tensor for name, tensor in aligner.items()}
    if method == "mmrl":
        return state | {"projection.weight": _get(published, "image_encoder.proj_rep")}
    return state | {f"projection.{name}": _get(published, f"image_encoder.{name}") for name in "AB"}


def _linear_aligner(published: dict[str, Tensor], letter: str) -> dict[str, Tensor]:
    prefix = f"{LEARNER}compound_rep_tokens_r2{letter}proj."
    return {name: _stack(published, prefix, name) for name in ("weight", "bias")}


def _shared_residual_aligner(published: dict[str, Tensor], letter: str) -> dict[str, Tensor]:
    prefix = f"{LEARNER}srra_r2{letter}proj."
    residual = {name: _stack(published, prefix + "srra.", name) for name in ("A", "B", "bias")}
    return {"weight": _get(published, prefix + "weight"), **residual}


def _stack(published: dict[str, Tensor], prefix: str, name: str) -> Tensor:
    pattern = re.compile(re.escape(prefix) + r"(0|[1-9][0-9]{0,3})\." + re.escape(name))
    layers = sorted(int(match[1]) for key in published if (match := pattern.fullmatch(key)))
    if layers != list(range(len(layers))) or not layers:
        raise UserError(f"the published checkpoint has layers {layers} of {prefix}*.{name}; it must have 0 to n - 1")
    tensors = [published[f"{prefix}{layer}.{name}"] for layer in layers]
    if len({tensor.shape for tensor in tensors}) > 1:
        raise UserError(f"the published checkpoint has layers of different shapes in {prefix}*.{name}")
    return torch.stack(tensors)


def _get(published: dict[str, Tensor], name: str) -> Tensor:
    if name not in published:
        raise UserError(f"the published checkpoint has no tensor {name}; is it one of MMRL or MMRL++?")
    return published[name]


def published_method(published: dict[str, Tensor]) -> str:
    """Which method a checkpoint holds, told by its names."""
    return "mmrlpp" if any("srra_r2vproj" in name for name in published) else "mmrl"


def implied_settings(published: dict[str, Tensor], depth: int) -> dict[str, Any]:
    """The adapter settings that the shapes tell; `depth` is N of the backbone's shallower tower."""
    method = published_method(published)
    state = to_adapter_state(published, method)
    if state["space"].ndim != 2:
        raise UserError(f"the published checkpoint's representation tokens have shape {tuple(state['space'].shape)}")
    settings = {
        "method": method,
        "n_tokens": state["space"].shape[0],
        "rep_dim": state["space"].shape[1],
        "insertion_depth": depth - len(state["image_aligner.bias"]) + 1,
    }
    if method == "mmrlpp":
        settings |= {"residual_rank": state["image_aligner.A"].shape[-1], "projection_rank": len(state["projection.B"])}
    return settings


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a `.pth.tar` of the authors' code, read without unpickling code. Raises UserError."""
    if not Path(path).is_file():
        raise UserError(f"{path} is no file; give the checkpoint to import")
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in _foreign_classes(path)]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises anything from struct.error to UnicodeDecodeError on damaged bytes
        kind = type(error).__name__
        raise UserError(f"{path} is no checkpoint of plain tensors ({kind}); nothing of it was run") from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise UserError(f"{path} has no `state_dict` of tensors; give a checkpoint that the authors' code saved")
    return {name.removeprefix("module."): _as_float32(name, tensor) for name, tensor in state.items()}


def _as_float32(name: str, tensor: Tensor) -> Tensor:
    """Whole numbers stay as they are: no learnable tensor has any. Raises UserError for what holds fewer values than
    its shape says: views without memory of their own, sparse and quantised tensors."""
    if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UserError(f"tensor {name} of the checkpoint is no plain tensor; give one that the authors' code saved")
    return tensor.float() if tensor.is_floating_point() else tensor


class Inert:
    """Stands in for the schedulers and metrics that lie beside `state_dict` in a checkpoint: holds and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _foreign_classes(path: str | Path) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # not a zip file: the format before torch 1.6
        return []
