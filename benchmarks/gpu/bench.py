"""What the parts share: the device, the sizes, the clock, and a row of what was found."""

import functools
import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image

from benchmarks.support.cases import Case, class_names
from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.data.sets import ImageSet

WARM_UP, BLOCKS = 3, 3


class NotHere(Exception):
    """Of what this device does not have: no failure."""


class Sizes(NamedTuple):
    """What is measured on what."""

    backbone: str
    cells: list[tuple[int, int]]  # classes and batch of the steps
    many: list[int]  # classes whose memory is measured
    seconds: float  # of one measurement
    images: int  # of an evaluation's batch, and of the views
    partitions: int
    products: int  # side of the matrices whose product is the device's rate


FULL = Sizes("ViT-B-16", [(50, 4), (100, 32)], [1000, 21000], 0.4, 256, 6, 8192)
TOY = Sizes("tiny", [(6, 2)], [20, 60], 0.0, 8, 2, 256)


class Row(NamedTuple):
    """A figure. `holds`: whether it is what it has to be, None where nothing is asked of it; `more` is for the JSON."""

    what: str
    value: float
    unit: str
    holds: bool | None = None
    more: dict | None = None


class Bench:
    """One device and its sizes."""

    def __init__(self, device: torch.device, toy: bool):
        self.device, self.toy, self.sizes = device, toy, TOY if toy else FULL

    @functools.cached_property
    def backbone(self) -> Backbone:
        return load_backbone(self.sizes.backbone, None if self.toy else "random", device=self.device)

    @functools.cached_property
    def tiny(self) -> Backbone:
        return load_backbone("tiny", device=self.device)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precisions(self) -> list[str]:
        """Those of the device: fp16 is CUDA's alone."""
        return ["float32", "bf16", *(["fp16"] if self.is_cuda else [])]

    def needs_cuda(self) -> None:
        if not self.is_cuda:
            raise NotHere("not on a CPU" if self.device.type == "cpu" else f"not on {self.device.type}")

    def case(self, method: str, classes: int, batch: int) -> Case:
        return Case(self.backbone, method, classes, batch)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call: the fastest of some blocks of calls, each awaited at its end. At toy size two calls in all."""
        for _ in range(1 if self.toy else WARM_UP):
            work()
        one = self._block(work, 1)
        if self.toy:
            return one
        count = max(1, min(100, int(self.sizes.seconds / max(one, 1e-6))))
        return min(self._block(work, count) for _ in range(BLOCKS)) if count > 1 else one

    def seconds_once(self, work: Callable[[], object]) -> float:
        """Of one call after another one: of what takes seconds."""
        work()
        return self._block(work, 1)

    def _block(self, work: Callable[[], object], count: int) -> float:
        self.wait()
        start = time.perf_counter()
        for _ in range(count):
            work()
        self.wait()
        return (time.perf_counter() - start) / count

    def free(self) -> None:
        """Let go of what is no longer used, so that the next figure does not count it."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


def noise_set(backbone: Backbone, images: int, classes: int, seed: int = 0) -> ImageSet:
    """Blurred noise a little larger than the backbone's images, each of the next class."""
    side, generator = backbone.image_size * 5 // 4, torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
    drawn = [Image.fromarray(one).resize((side, side)) for one in pixels]
    labels = [index % classes for index in range(images)]
    return ImageSet([f"{seed}-{index}" for index in range(images)], drawn, labels, class_names(classes), "a {}.")


def matmul_rate(bench: Bench, dtype: torch.dtype) -> float:
    """The measured matrix-multiply rate of a type in FLOP/s."""
    side = bench.sizes.products
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    return 2 * side**3 / bench.seconds(lambda: a @ b)
