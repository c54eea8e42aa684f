"""The report's figures of single classes as inline SVG: confusions and gains, base and novel classes told apart."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flows.report.figures import draw, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"base": ("#22559c", "base: trained on"), "novel": ("#c05a00", "novel: not trained on")}  # colour, legend
NO_KIND = "#555555"  # where a protocol does not divide the classes
LARGEST_MATRIX, MOST_BARS = 40, 15


class ClassGain(NamedTuple):
    """A class's accuracy minus zero-shot's; `kind` is one of KINDS, or empty."""

    name: str
    gain: float
    kind: str


def confusion(name: str, matrix: np.ndarray, classes: list[str], kinds: list[str]) -> str:
    """Share of each class's images (rows) by what they were taken for (columns); lines where another kind begins."""
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(2.8, 0.26 * len(classes) + 1.6)

    def paint(figure: "Figure", axes: "Axes") -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(range(len(classes)), map(plain, classes), rotation=90)
        axes.set_yticks(range(len(classes)), map(plain, classes))
        axes.set(xlabel="predicted", ylabel="true", title=plain(name))
        axes.grid(visible=False)
        for row, column in zip(*np.nonzero(shares >= 1), strict=True):
            colour = "white" if shares[row, column] > 60 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        for place in (place for place in range(1, len(kinds)) if kinds[place] != kinds[place - 1]):
            axes.axhline(place - 0.5, color="#222", linewidth=1)
            axes.axvline(place - 0.5, color="#222", linewidth=1)
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            _colour(labels, kinds)
        _legend(figure, kinds)

    size = (side, side + 0.3 * any(kinds))
    return draw(f"Confusion matrix of {name}, in percent of each true class", size, paint)


def class_gains(name: str, gains: list[ClassGain]) -> str:
    """Accuracy minus zero-shot's by class, largest gain first; only the extremes of many classes."""
    ordered = sorted(gains, key=lambda one: -one.gain)
    if len(ordered) > 2 * MOST_BARS:
        ordered = ordered[:MOST_BARS] + ordered[-MOST_BARS:]
    names, values, kinds = (list(column) for column in zip(*ordered[::-1], strict=True))

    def paint(figure: "Figure", axes: "Axes") -> None:
        axes.barh(range(len(names)), 100 * np.array(values), color=[_colour_of(kind) for kind in kinds])
        axes.set_yticks(range(len(names)), map(plain, names))
        _colour(axes.get_yticklabels(), kinds)
        axes.axvline(0, color="#444", linewidth=0.8)
        axes.set(xlabel="gain over zero-shot, points", title=plain(name))
        axes.grid(axis="y", visible=False)
        _legend(figure, kinds)

    size = (3.6 + 0.07 * max(map(len, names)), 0.22 * len(names) + 1.1 + 0.3 * any(kinds))
    return draw(f"Gain over zero-shot by class, {name}", size, paint)


def _colour_of(kind: str) -> str:
    return KINDS[kind][0] if kind else NO_KIND


def _colour(labels: list, kinds: list[str]) -> None:
    for label, kind in zip(labels, kinds, strict=True):
        label.set_color(_colour_of(kind) if kind else "black")


def _legend(figure: "Figure", kinds: list[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for kind, (colour, label) in KINDS.items() if kind in kinds]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
