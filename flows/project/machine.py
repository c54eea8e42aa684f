"""The machine that results are of: what its CPU is called, and how torch uses it."""

import datetime
import os
import platform
from pathlib import Path

from typing_extensions import TypedDict


class Machine(TypedDict):
    """What figures may differ by in their last digits; `capability` is the vector unit that torch uses, `date` of the
    day on which this was asked."""

    processor: str
    cores: int
    capability: str
    gpu: str | None
    torch: str
    date: str


def this_machine() -> Machine:
    """In the environment of this process: ATEN_CPU_CAPABILITY is another capability."""
    import torch

    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def in_words(machine: Machine) -> str:
    """`AMD EPYC, family 25, model 17; 2 cores, AVX512, torch 2.12.1`."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['processor']}; {machine['cores']} cores, {machine['capability']}{gpu}, torch {machine['torch']}"


def processor() -> str:
    """The model name in /proc/cpuinfo, where there is one, with its family and model numbers."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = f"family {facts.get('cpu family')}, model {facts.get('model')}"
    return f"{facts['model name']}, {numbers}" if "model name" in facts else platform.machine()
