"""In which floating-point type the towers' matrix products run; everything around them stays in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmrl_core.errors import UserError

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def settle_precision(precision: str, device: torch.device) -> str:
    """What `train.precision` means on a device: `auto` is float32 on a CPU and on Apple's GPUs (mps), where nothing
    lower was ever tried, on another GPU bf16 where it has it, else fp16.

    float32 is the setting of the golden vectors and gives the same adapter on every CPU of a kind; bf16 is faster where
    the CPU has matrix units for it, and has to be asked for. Raises UserError for fp16 on either.
    """
    if precision == "fp16" and device.type in ("cpu", "mps"):
        needed = "a GPU" if device.type == "cpu" else "CUDA"
        raise UserError(f"train.precision is fp16, which needs {needed}; set bf16, float32 or auto")
    if precision != "auto":
        return precision
    if device.type in ("cpu", "mps"):
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextmanager
def whole_float32() -> Iterator[None]:
    """Inside, a GPU convolves float32 as float32: by torch's default cuDNN takes TF32, ten bits of 23, for it, though
    not for matrix products."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
