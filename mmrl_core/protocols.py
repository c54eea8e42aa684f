"""The evaluation protocols as data: what is trained on, and which logits score which test classes."""

from typing import NamedTuple


class TestSet(NamedTuple):
    """Classes to test on: their half of the dataset, and the logits they get in use."""

    half: str  # "base" or "novel"
    logits: str  # "fused" for classes that were trained on, "class" for others


class Protocol(NamedTuple):
    trains_on: str
    tests: tuple[TestSet, ...]


PROTOCOLS = {
    "base-to-novel": Protocol("base", (TestSet("base", "fused"), TestSet("novel", "class"))),
}


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n), and 0 when both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0
