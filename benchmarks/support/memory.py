"""Peak memory of a step, and the two settings of the C allocator under which a step is timed. Linux with glibc.

`as_found` is what glibc does by itself: its thresholds grow with what a process frees, up to the values set here, and
freed memory beyond them goes back to the system. `keep_freed_memory` is the product's setting
(mmrl_core/training/process.py).
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from mmrl_core.training.process import M_MMAP_MAX, M_TRIM_THRESHOLD, keep_freed_memory

M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD, TRIM_THRESHOLD, MMAP_MAX = 32 << 20, 64 << 20, 65536  # where glibc's dynamic adjustment ends
SPARE = 1.25  # of a step's peak, for what fragmentation adds
PIECE = 1 << 20  # bytes
SHARE = 0.78  # of the available memory that a step with its spare may take
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def as_found() -> None:
    """glibc's defaults again, after `keep_freed_memory`."""
    libc = _glibc()
    if libc:
        libc.mallopt(M_MMAP_MAX, MMAP_MAX)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    give_back()


def warm_heap(peak: int | None) -> None:
    """The product's setting, with as much memory in hand as steps of that peak (bytes) will have left behind."""
    room = SHARE * available()
    keep_freed_memory()
    # Many small pieces, since free blocks whose pages went back are taken again before new memory is.
    count = int(min(SPARE * (peak or 0), room)) // PIECE
    pieces = [torch.empty(PIECE, dtype=torch.uint8).fill_(1) for _ in range(count)]
    del pieces


def give_back() -> None:
    """Hand all freed memory back to the system."""
    gc.collect()
    libc = _glibc()
    if libc:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None


def peak_of(work: Callable[[], object]) -> int | None:
    """Bytes of memory that `work` has at its peak beyond what the process had before; None where Linux does not say."""
    give_back()
    try:
        CLEAR.write_text("5")  # sets the high-water mark to what is resident now
    except OSError:
        work()
        return None
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def available() -> float:
    """Bytes that may still be taken."""
    give_back()
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable")), float("inf"))
