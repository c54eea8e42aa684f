"""Which device a call computes on."""

import torch

from mmrl_core.errors import UserError


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that is named; by default the GPU if there is one, else the CPU. Raises UserError for one that is not
    there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except Exception as error:  # of a name that is none, a build without it, a driver: torch raises many kinds
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"device {str(device)!r} is not to be had here ({reason}); name another, or leave it") from None
