"""`make bench`: one training step against the oracle, in one process, on a ViT-B/16-shaped random model."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmrl_core.adapter import Adapter
from mmrl_core.backbone import Backbone, load_backbone
from mmrl_core.config import AdapterConfig
from mmrl_core.losses import mmrl_loss
from mmrl_core.model import AdaptedCLIP
from mmrl_core.training import new_optimizer
from tests.oracle import Oracle

CLASSES, BATCH, ROUNDS = 50, 4, 5
WORDS = ["red", "small", "old", "wooden", "striped", "quiet", "round", "bright", "wild", "plain"]
NAMES = [
    f"{WORDS[i % 10]} {noun}" for i in range(CLASSES) for noun in (["dog", "car", "cup", "tree", "bird"][i // 10],)
]


def oracle_step(backbone: Backbone, adapter: Adapter, images, labels) -> Callable[[], None]:
    oracle = Oracle(backbone.clip, backbone.tokenizer, adapter, NAMES, "a photo of a {}.")
    zero_shot_text, optimizer = oracle.zero_shot(images[:1])[1], new_optimizer(adapter, 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        oracle.loss(images, labels, zero_shot_text).backward()
        optimizer.step()

    return step


def model_step(backbone: Backbone, adapter: Adapter, images, labels) -> Callable[[], None]:
    model = AdaptedCLIP(backbone, adapter, NAMES, "a photo of a {}.")
    optimizer, config = new_optimizer(adapter, 1e-4), adapter.config

    def step() -> None:
        optimizer.zero_grad()
        trunk = model.image_tower.trunk(images)
        zero = model.image_tower.zero_shot(trunk)
        out = model.from_trunk(trunk)
        terms = mmrl_loss(out, labels, zero, model.zero_shot_text, alpha=config.alpha, reg_weight=config.reg_weight)
        terms.total.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def counted_flops(step: Callable[[], None]) -> int:
    """Floating-point operations of one step's matrix products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matmul_rate() -> float:
    """The machine's measured float32 matrix-multiply rate, in FLOP/s: the best of ten of a tower's own size."""
    a, b = torch.randn(1024, 768), torch.randn(768, 3072)
    best = min(seconds(lambda: a @ b) for _ in range(10))
    return 2 * 1024 * 768 * 3072 / best


def measure(method: str, backbone: Backbone) -> dict:
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH)
    steps = [make(backbone, Adapter(AdapterConfig(method=method), backbone), images, labels)
             for make in (oracle_step, model_step)]  # fmt: skip
    flops = [counted_flops(step) for step in steps]  # also the warm-up
    pairs = [[seconds(step) for step in steps] for _ in range(ROUNDS)]  # in turn, so that both see the same machine
    oracle, model = (statistics.median(column) for column in zip(*pairs, strict=True))
    rate = matmul_rate()
    return {
        "method": method, "ratio": oracle / model, "oracle_ms": 1e3 * oracle, "model_ms": 1e3 * model,
        "flop_ratio": flops[0] / flops[1], "oracle_gflop": flops[0] / 1e9, "model_gflop": flops[1] / 1e9,
        "matmul_gflops": rate / 1e9, "oracle_share": flops[0] / oracle / rate, "model_share": flops[1] / model / rate,
    }  # fmt: skip


def main() -> None:
    backbone = load_backbone("ViT-B-16", "random")
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
               "processor": platform.processor() or platform.machine()}  # fmt: skip
    print(f"One training step, ViT-B/16 shape, {CLASSES} classes, batch {BATCH}, float32: {machine}")
    print(f"{'method':8}{'ratio':>8}{'oracle ms':>12}{'model ms':>12}{'GFLOP ratio':>14}"
          f"{'oracle share':>14}{'model share':>14}")  # fmt: skip
    rows = []
    for method in ("mmrl", "mmrlpp"):
        row = measure(method, backbone)
        rows.append(row)
        print(f"{method:8}{row['ratio']:8.2f}{row['oracle_ms']:12.0f}{row['model_ms']:12.0f}{row['flop_ratio']:14.2f}"
              f"{row['oracle_share']:14.0%}{row['model_share']:14.0%}")  # fmt: skip
    print(f"share: of the machine's matrix-multiply rate, measured here at {rows[0]['matmul_gflops']:.0f} GFLOP/s")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
