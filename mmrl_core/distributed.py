"""Data-parallel training of one adapter by several processes: how work is divided, and the collectives.

Every global batch and the list of classes are divided among the workers. Class features are gathered with gradients,
parameter gradients are summed: all workers hold the same adapter, and it is the one that a single process trains.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Their gradients, after a backward pass that reached every one of them."""
    return [cast(Tensor, parameter.grad) for parameter in parameters]


class Workers:
    """One process alone: its share is everything."""

    rank, size = 0, 1

    def share(self, values: Sequence[T]) -> Sequence[T]:
        """This worker's part: contiguous, nearly equal, the first ones the larger."""
        return values[slice(*self._bounds(len(values))[self.rank])]

    def fraction(self, n: int) -> float:
        """This worker's part of n as a fraction of n."""
        start, stop = self._bounds(n)[self.rank]
        return (stop - start) / n

    def largest_share(self, n: int) -> int:
        return -(-n // self.size)

    def _bounds(self, n: int) -> list[tuple[int, int]]:
        edges = [rank * (n // self.size) + min(rank, n % self.size) for rank in range(self.size + 1)]
        return list(pairwise(edges))

    def gather(self, part: Tensor, n: int) -> Tensor:
        """The rows of all workers, n in all, in order; gradients flow back to their owners."""
        return part

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every parameter's gradient by the sum over the workers."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the workers, without gradients."""
        return values

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors with the first worker's."""

    def broadcast_bytes(self, content: bytes, device: torch.device) -> bytes:
        """The first worker's bytes, sent as tensors on `device`."""
        return content


class Distributed(Workers):
    """The processes of torch.distributed's default group."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def gather(self, part: Tensor, n: int) -> Tensor:
        return _Gather.apply(part, self._bounds(n), self.rank)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        grads = gradients(parameters)
        flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
        parts = flat.split([grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))

    def sum(self, values: Tensor) -> Tensor:
        values = values.detach().clone()
        distributed.all_reduce(values)
        return values

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)

    def broadcast_bytes(self, content: bytes, device: torch.device) -> bytes:
        length = torch.tensor(len(content), device=device)
        self.broadcast([length])
        if not length:
            return b""
        values = torch.frombuffer(bytearray(content or int(length)), dtype=torch.uint8).to(device)
        self.broadcast([values])
        return values.cpu().numpy().tobytes()


class _Gather(torch.autograd.Function):
    """All-gather of unequal numbers of rows. Backward: the gradients of this worker's rows, summed over all."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, bounds: list[tuple[int, int]], rank: int) -> Tensor:
        ctx.bounds, ctx.rank = bounds, rank
        counts = [stop - start for start, stop in bounds]
        padded = part.new_zeros(max(counts), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous()
        distributed.all_reduce(grad)
        start, stop = ctx.bounds[ctx.rank]
        return grad[start:stop], None, None
