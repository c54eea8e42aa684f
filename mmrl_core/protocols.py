"""The evaluation protocols as data: what is trained on, and which images are tested among which classes.

A class that was trained on is scored by the fused logits, any other by the class logits (method.md, "Inference").
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from typing_extensions import TypedDict

Half = Literal["base", "novel"]
HALVES: tuple[Half, ...] = ("base", "novel")
BaselineMethod = Literal["linear_probe", "tip_adapter", "tip_adapter_f"]
BASELINES: tuple[BaselineMethod, ...] = get_args(BaselineMethod)  # what the methods are compared with


class LabelsByHalf(TypedDict):
    """The labels of a dataset's base and of its novel classes."""

    base: list[int]
    novel: list[int]


class TestSet(NamedTuple):
    """One figure of a protocol: the images of some halves of a dataset, classified among the classes of some halves."""

    part: str  # its name in metrics.json
    images: tuple[Half, ...]
    classes: tuple[Half, ...]


class Protocol(NamedTuple):
    """What is trained on, and what is tested."""

    trains_on: tuple[Half, ...]  # halves of the dataset
    tests: tuple[TestSet, ...]  # on the dataset trained on
    has_targets: bool = False  # tested on the settings' `targets` as well
    new_classes: bool = True  # whether it tests classes that training never saw; the search then does so too

    @property
    def training(self) -> dict[str, Any]:
        """All of it that training and search depend on: protocols that agree in this share their adapters."""
        return {
            "trains_on": list(self.trains_on), "new_classes": self.new_classes, "transfers": self.has_targets
        }  # fmt: skip

    @property
    def trained_part(self) -> str:
        """The part under which validation on the trained classes is reported."""
        return "base" if self.trains_on == ("base",) else "all"


ALL = TestSet("all", HALVES, HALVES)

PROTOCOLS = {
    "base-to-novel": Protocol(
        ("base",), (TestSet("base", ("base",), ("base",)), TestSet("novel", ("novel",), ("novel",)))
    ),
    "joint": Protocol(("base",), (TestSet("base", ("base",), HALVES), TestSet("novel", ("novel",), HALVES))),
    "few-shot": Protocol(HALVES, (ALL,), new_classes=False),
    "cross-dataset": Protocol(HALVES, (ALL,), has_targets=True),
    "domain-generalization": Protocol(HALVES, (ALL,), has_targets=True),
}

ON_TARGET = Protocol((), (ALL,))  # what is asked of a dataset among the settings' `targets`


def labels_of(labels: LabelsByHalf, halves: Iterable[Half]) -> list[int]:
    """The labels of these halves of a dataset, in order; a prepared dataset's manifest holds those of both."""
    return sorted(label for half in halves for label in labels[half])


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n), and 0 when both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0
