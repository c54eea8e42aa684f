"""Safetensors files whose tensors are known beforehand: the header is compared before any of them is read."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mmrl_core.method.shapes import Shapes
from mmrl_core.method.tensor_header import checked_bytes, refuse_infinite


def read_tensors(path: Path, shapes: Shapes, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file of that sha256. Raises Damaged unless they are those of `shapes`, float32 and finite;
    UserError when the file cannot be read."""
    tensors = safetensors.torch.load(checked_bytes(path, shapes, sha256))
    refuse_infinite(path, not_finite(tensors))
    return tensors


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with a value that is no number or infinite; None where there is none."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
