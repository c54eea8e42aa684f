"""Random weights with the same bits on every machine.

torch.randn's last bits depend on the CPU's vector unit, and so would a digest of what it draws. Here PCG64's integers,
whose stream NumPy keeps, become floats by multiplication and addition alone, which IEEE 754 settles to the bit.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CHUNK = 2**20  # numbers drawn at a time


class Draws:
    """A stream of numbers, a function of the seed."""

    def __init__(self, seed: int):
        self._bits = np.random.PCG64(seed)

    def between(self, low: float, high: float, shape: Sequence[int]) -> Tensor:
        """Evenly distributed float32, with 2**24 steps; their size is taken to nine digits, since whoever computed the
        bounds may have rounded otherwise."""
        step, centre = (np.float32(f"{value:.9g}") for value in ((high - low) / 2**24, (high + low) / 2))
        values = np.empty(math.prod(shape), np.float32)
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            part[:] = self._bits.random_raw(len(part)) >> np.uint64(40)
            part -= np.float32(2**23)
            part *= step
            part += centre
        return torch.from_numpy(values).view(*shape)

    def spread(self, std: float, shape: Sequence[int], mean: float = 0.0) -> Tensor:
        """Float32 of that mean and standard deviation: evenly distributed, since a normal distribution would take
        logarithms and cosines, whose last bits differ."""
        reach = math.sqrt(3) * std
        return self.between(mean - reach, mean + reach, shape)


class PortableInit(TorchDispatchMode):
    """Within it torch's `normal_`, `uniform_` and `randn` take their numbers from the Draws of a seed: a model built by
    any library gets the same weights everywhere, with the means and standard deviations that the library asks for."""

    def __init__(self, seed: int):
        super().__init__()
        self._draws = Draws(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten.randn.default:
            return self._draws.spread(1.0, args[0])
        if func not in (aten.normal_.default, aten.uniform_.default):
            return func(*args, **(kwargs or {}))
        tensor, given = args[0], tuple(args[1:])
        first, second = given + (0.0, 1.0)[len(given) :]  # mean and deviation, or bounds
        if func is aten.normal_.default:
            return tensor.copy_(self._draws.spread(second, tensor.shape, first))
        return tensor.copy_(self._draws.between(first, second, tensor.shape))
