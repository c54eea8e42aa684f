"""The machine under the measurements: what it is, how busy it is, how fast it multiplies matrices."""

import os
import time
from collections.abc import Callable

import torch

from flows.project.machine import processor

ROWS, INPUTS, OUTPUTS = 1024, 768, 3072  # a product of a ViT-B/16's own size
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matmul_rates(duration: float = 0.3) -> dict[str, float]:
    """The measured matrix-multiply rate of both types in FLOP/s: the best product within `duration` seconds each."""
    rates = {}
    for name, dtype in DTYPES.items():
        a, b = torch.randn(ROWS, INPUTS).to(dtype), torch.randn(INPUTS, OUTPUTS).to(dtype)
        times = []
        while sum(times) < duration:
            times.append(seconds(lambda a=a, b=b: a @ b))
        rates[name] = 2 * ROWS * INPUTS * OUTPUTS / min(times)
    return rates


def describe() -> dict:
    """What the machine and its torch are."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": memory_gb(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def state() -> dict:
    """Load average over a minute, and matrix-multiply rates in GFLOP/s: how free the machine is just now."""
    load = os.getloadavg()[0]  # before the products below add to it
    return {"load": load, "gflops": {name: rate / 1e9 for name, rate in matmul_rates().items()}}
