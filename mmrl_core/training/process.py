"""What a process that trains or evaluates sets for itself: how it keeps freed memory, and how many threads it uses."""

import ctypes
import sys

import torch

from mmrl_core.clip.backbone import Backbone

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: a training step frees and allocates the same hundreds of megabytes again.

    Fresh pages come at 3 to 5 GB/s, a tenth of a step's time. The peak of the process does not change. Elsewhere than
    under glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_MMAP_MAX, 0)


SMALL = 12 * 384**2  # layers x width^2: a ViT-S


def settle_process(backbone: Backbone) -> None:
    """What a process that trains or evaluates sets for itself: how it keeps memory, and its threads."""
    keep_freed_memory()
    settle_threads(backbone)


def settle_threads(backbone: Backbone) -> None:
    """Give a small backbone one CPU thread: more are no faster, and sums in another order would give other bits."""
    if is_small(backbone):
        torch.set_num_threads(1)


def is_small(backbone: Backbone) -> bool:
    """Whether its image tower is smaller than a ViT-S: a few-shot training then takes seconds."""
    return len(backbone.image_blocks) * backbone.image_width**2 < SMALL
