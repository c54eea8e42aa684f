"""CUDA graphs: kernels that are recorded once and replayed, since to launch a small one takes longer than it runs.

What is recorded gives what launching gives. Where recording fails, everything is launched, with one warning.
"""

import functools
import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from mmrl_core.clip.towers import Frozen, ImageTower

WARM_UP = 3  # passes on a side stream before a capture, as PyTorch's CUDA graphs ask for
log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()

Outputs = TypeVar("Outputs", Tensor, Frozen)


class Graphed(Generic[Outputs]):
    """A function of tensors on a GPU, captured once and replayed for inputs of the same shapes.

    Raises RuntimeError where it cannot be captured.
    """

    def __init__(self, function: Callable[..., Outputs], inputs: tuple[Tensor, ...]):
        self.inputs: list[Tensor] = [tensor.clone() for tensor in inputs]
        device = inputs[0].device
        with _one_at_a_time:
            side = _side_stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function(*self.inputs)
            torch.cuda.current_stream(device).wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            # Threads that read views ahead pin memory meanwhile: that is none of the capture's business.
            with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
                self.output: Outputs = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Outputs:
        for static, tensor in zip(self.inputs, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        self.graph.replay()
        return cast(Outputs, _copied(self.output))


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream on which everything of a device is warmed up and captured: cuBLAS keeps a workspace for each
    stream that it has worked on (some 64 MiB on an H200), however short its life was."""
    return torch.cuda.Stream(device)


def _copied(output: Tensor | Frozen) -> Tensor | Frozen:
    """In memory that the next replay leaves alone."""
    return output.clone() if isinstance(output, Tensor) else Frozen(*(tensor.clone() for tensor in output))


def warn(what: str, error: Exception) -> None:
    log.warning("no CUDA graph of %s (%s): every kernel is launched by itself", what, str(error).splitlines()[0])


class FrozenPass:
    """`tower.frozen` in chunks of one size: on a GPU a graph, recorded with the first chunk, and elsewhere as it is."""

    def __init__(self, tower: ImageTower, chunk: int):
        self.tower, self.chunk = tower, chunk
        self._run: Callable[[Tensor], Frozen] | None = None

    def __call__(self, images: Tensor) -> Frozen:
        """Frozen features of views (B, 3, S, S); the last chunk is filled up, as `in_chunks` does it."""
        if not images.is_cuda:
            return self.tower.frozen(images, self.chunk)
        missing = -len(images) % self.chunk
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
        parts = [self._of_chunk(part) for part in filled.split(self.chunk)]
        whole = parts[0] if len(parts) == 1 else Frozen(*map(torch.cat, zip(*parts, strict=True)))
        return Frozen(*(tensor[: len(images)] for tensor in whole))

    def _of_chunk(self, images: Tensor) -> Frozen:
        if self._run is None:
            try:
                self._run = Graphed(self._launched, (images,))
            except RuntimeError as error:
                warn("the frozen features", error)
                self._run = self._launched
        return self._run(images)

    def _launched(self, images: Tensor) -> Frozen:
        return self.tower.frozen(images, self.chunk)
