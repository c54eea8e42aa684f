"""What a training's workers say to the driver. An actor of its own, in a process that imports nothing but this."""

from typing import NamedTuple


class Trained(NamedTuple):
    """An adapter's tensors as safetensors bytes, the metrics of all epochs, the precision that the workers had."""

    adapter: bytes
    history: list[dict[str, float]]
    precision: str


class Inbox:
    """What the workers have said so far; an actor on the driver's node."""

    def __init__(self):
        self.epochs: list[dict[str, float]] = []
        self.trained, self.failure, self.workers = None, None, 0

    def epoch(self, epoch: int, metrics: dict[str, float], workers: int) -> None:
        self.workers = workers
        if epoch == len(self.epochs):
            self.epochs.append(metrics)

    def finish(self, trained: Trained) -> None:
        self.trained = trained

    def fail(self, reason: str) -> None:
        self.failure = reason

    def news(self, known: int) -> tuple[list[dict[str, float]], int]:
        """Epochs beyond the known ones, and how many workers there are."""
        return self.epochs[known:], self.workers

    def result(self) -> tuple[Trained | None, str | None]:
        return self.trained, self.failure
