"""A step's passes and its update as one CUDA graph."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mmrl_core.clip.graphs import Graphed

Passes = Callable[[Tensor, Tensor, Tensor], Tensor]


class WholeStep:
    """Passes and updates, recorded; parameters and moments are after recording what they were before it.

    A graph keeps every number that it has seen. The learning rate changes with the epochs, so the graph reads it from
    a tensor, which follows the optimizer's own before each step. Raises RuntimeError where it cannot be captured.
    """

    def __init__(self, passes: Passes, optimizers: Sequence[torch.optim.Optimizer], inputs: tuple[Tensor, ...]):
        self.passes, self.optimizers = passes, optimizers
        self.rates = [torch.zeros((), device=inputs[0].device) for _ in optimizers]
        self.set_to: list[float | None] = [None for _ in optimizers]
        self._follow()
        with untouched(optimizers), reading(self.rates, optimizers), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable")  # of the warm-up
            self.graph: Graphed[Tensor] = Graphed(self._step, inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        self._follow()
        return self.graph(*inputs)

    def _step(self, *inputs: Tensor) -> Tensor:
        terms = self.passes(*inputs)
        for optimizer in self.optimizers:
            optimizer.step()
        return terms

    def _follow(self) -> None:
        for index, (rate, optimizer) in enumerate(zip(self.rates, self.optimizers, strict=True)):
            lr = optimizer.param_groups[0]["lr"]
            if lr != self.set_to[index]:
                rate.fill_(lr)
                self.set_to[index] = lr


@contextmanager
def reading(rates: Sequence[Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Inside, the optimizers read these learning rates when a step runs, not when it is called."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    own = [(group["lr"], group["capturable"]) for group in groups]
    for rate, optimizer in zip(rates, optimizers, strict=True):
        for group in optimizer.param_groups:
            group.update(lr=rate, capturable=True)
    try:
        yield
    finally:
        for group, (lr, capturable) in zip(groups, own, strict=True):
            group.update(lr=lr, capturable=capturable)


@contextmanager
def untouched(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Whatever steps are taken inside: parameters and moments are afterwards what they were, in the same memory."""
    weights = [weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
    before = [weight.detach().clone() for weight in weights]
    kept = [
        {weight: {name: value.clone() for name, value in own.items()} for weight, own in optimizer.state.items()}
        for optimizer in optimizers
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
        for optimizer, states in zip(optimizers, kept, strict=True):
            for weight, own in optimizer.state.items():
                for name, value in own.items():
                    if name in states.get(weight, {}):
                        value.copy_(states[weight][name])
                    else:
                        value.zero_()  # as an optimizer begins
