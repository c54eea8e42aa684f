"""How much memory there is, and how fast this machine multiplies."""

import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

from mmrl_core.clip.precision import DTYPES

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
SIDE, ROUNDS = 2048, 3  # of the matrices that are multiplied, and how often: the best counts


class Room(NamedTuple):
    """Bytes that a process can have at most, and of what."""

    bytes: int
    of: str


def room_on(device: torch.device) -> Room | None:
    """The memory of a GPU; on a CPU what the machine has with its swap, or less where a container's limit says so.
    None where the system does not say."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return Room(facts.total_memory, facts.name)
    if device.type != "cpu" or (memory := _of_machine()) is None:
        return None
    limits = [limit for limit in _limits() if limit < memory]
    return Room(min(limits) + _swap(), "this container") if limits else Room(memory + _swap(), "this machine")


def _of_machine() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # a system without them
        return None


def _swap() -> int:
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("SwapTotal:")), 0)


def _limits(root: Path = CGROUPS, own: Path = OWN) -> list[int]:
    """Of the control groups that the process is in and those above them, of either version."""
    lines = own.read_text().splitlines() if own.exists() else []
    groups = [line.split(":", 2)[2].strip("/") for line in lines if line.count(":") > 1]
    folders = {Path(*Path(group).parts[:depth]) for group in groups for depth in range(len(Path(group).parts) + 1)}
    files = [root / folder / "memory.max" for folder in folders]
    files += [root / "memory" / folder / "memory.limit_in_bytes" for folder in folders]
    return [limit for file in files if (limit := _number(file)) is not None]


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def multiplications(device: torch.device, precision: str) -> float:
    """Operations a second of one large matrix product of a settled precision, measured: a second or so."""
    matrix = torch.randn(SIDE, SIDE, device=device).to(DTYPES[precision])
    best = float("inf")
    for _ in range(1 + ROUNDS):  # the first one warms up, and is as good as any if it is the best
        start = time.perf_counter()
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        del product
    return 2 * SIDE**3 / best
