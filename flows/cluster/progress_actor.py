"""How a training's workers report to the driver: an actor, whose process imports nothing but this module."""

from typing import NamedTuple


class Trained(NamedTuple):
    """An adapter's tensors as safetensors bytes, the metrics of all epochs, the precision that the workers had."""

    adapter: bytes
    history: list[dict[str, float]]
    precision: str


class ProgressActor:
    """What the workers have reported so far: metrics of epochs, and how it ended. Runs on the driver's node."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.trained: Trained | None = None
        self.failure: str | None = None
        self.workers = 0

    def epoch(self, epoch: int, metrics: dict[str, float], workers: int) -> None:
        self.workers = workers
        if epoch == len(self.epochs):
            self.epochs.append(metrics)

    def finish(self, trained: Trained) -> None:
        self.trained = trained

    def fail(self, reason: str) -> None:
        self.failure = reason

    def news(self, known: int) -> tuple[list[dict[str, float]], int]:
        """The metrics of all epochs after the first `known` ones, and how many workers there are."""
        return self.epochs[known:], self.workers

    def result(self) -> tuple[Trained | None, str | None]:
        """The adapter, or why there is none; both None where the training did not end."""
        return self.trained, self.failure
