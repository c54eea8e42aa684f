"""Which device a call computes on, and that it does so in no mode of its caller's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmrl_core.errors import UserError


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that is named; by default, and by `auto`, the CUDA GPU if there is one, else the CPU. Raises UserError
    for one that is not there."""
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except Exception as error:  # of a name that is none, a build without it, a driver: torch raises many kinds
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"device {str(device)!r} is not to be had here ({reason}); name another, or leave it") from None


@contextmanager
def plainly() -> Iterator[None]:
    """Outside of the autocast, `no_grad` or `inference_mode` that the caller may be in: what is trained or loaded is of
    no lower precision for it, and can be trained and used elsewhere. Also a decorator."""
    with torch.inference_mode(False), torch.enable_grad(), _full("cpu"), _full("cuda"):
        yield


def _full(kind: str) -> torch.autocast:
    """No autocast on that kind of device."""
    return torch.autocast(kind, enabled=False)
