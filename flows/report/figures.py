"""The report's figures as inline SVG, the same bytes for the same numbers."""

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.report.tables import METHOD_TITLES, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {  # Okabe and Ito's: told apart by everyone
    "zero_shot": "#8a8a8a", "linear_probe": "#222222", "tip_adapter": "#009e73", "tip_adapter_f": "#cc79a7",
    "mmrl": "#0072b2", "mmrl+probe": "#56b4e9", "mmrlpp": "#d55e00", "mmrlpp+probe": "#e69f00",
}  # fmt: skip
RISE, FALL = "#009e73", "#cc79a7"
STYLE = {
    "svg.hashsalt": "mmrl", "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "grid.color": "#e5e5e5",
    "legend.frameon": False,
}  # fmt: skip
LARGEST_MATRIX, MOST_BARS = 40, 15


def draw(alt: str, size: tuple[float, float], paint: Callable[["Figure", "Axes"], None]) -> str:
    """An SVG element `size` inches large; `paint(figure, axes)` fills it, `alt` describes it."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]), warnings.catch_warnings():  # default: whatever the user's matplotlibrc says
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text, the browser has the fonts
        figure = Figure(size, layout="constrained")
        paint(figure, figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.S)
    _, _, body = svg.partition(">\n")[2].partition("<svg")
    body = re.sub(r' (width|height)="[\d.]+pt"', "", body, count=2)
    css = f"max-width:100%;height:auto;width:{size[0]:.2f}in"
    return f'<svg role="img" aria-label="{escape(alt, quote=True)}" style="{css}"{body}'


def plain(text: str) -> str:
    """Text of the user's for matplotlib, which would read what stands between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def bars(rows: list[dict], part: str) -> str:
    """One part's accuracy, or the harmonic mean, of every dataset by method, with the deviation over seeds."""
    names = list(dict.fromkeys(title(row) for row in rows))
    methods = [name for name in METHOD_TITLES if any(row["method"] == name for row in rows)]
    width = 0.8 / len(methods)

    def paint(figure: "Figure", axes: "Axes") -> None:
        for place, method in enumerate(methods):
            mine = {title(row): _value(row, part) for row in rows if row["method"] == method}
            at = np.arange(len(names)) + (place - (len(methods) - 1) / 2) * width
            mean, std = (100 * np.array([mine[name][i] for name in names]) for i in (0, 1))
            axes.bar(at, mean, width, yerr=std if method != "zero_shot" else None, capsize=2,
                     color=COLOURS[method], label=METHOD_TITLES[method])  # fmt: skip
        axes.set(ylim=(0, 100), ylabel="%", title="accuracy" if part == "all" else part.replace("_", " "))
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(names) > 2 else {}
        axes.set_xticks(range(len(names)), map(plain, names), **slanted)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, columnspacing=1)

    return draw(f"Bars: {part} of {', '.join(names)}", (max(3.8, 0.9 * len(names) + 1.5), 3.2), paint)


def _value(row: dict, part: str) -> tuple[float, float]:
    if part == "harmonic_mean":
        return row["harmonic_mean"], row["harmonic_mean_std"]
    return row["accuracy"][part]["mean"], row["accuracy"][part]["std"]


def learning_curves(name: str, curves: dict[str, dict[int, list[float]]]) -> str:
    """Loss against epochs: thin lines the seeds of a method, the thick one their mean."""

    def paint(figure: "Figure", axes: "Axes") -> None:
        for method, losses in curves.items():
            for loss in losses.values():
                axes.plot(range(1, len(loss) + 1), loss, color=COLOURS[method], alpha=0.3, linewidth=1)
            mean = [np.mean(epoch) for epoch in zip(*losses.values(), strict=False)]  # of the epochs that all have
            axes.plot(range(1, len(mean) + 1), mean, color=COLOURS[method], label=METHOD_TITLES[method], marker=".")
        axes.set(xlabel="epoch", ylabel="training loss", title=plain(name))
        locator: Any = axes.xaxis.get_major_locator()  # a MaxNLocator, where the annotation says Locator
        locator.set_params(integer=True)
        axes.legend()

    return draw(f"Training loss of {name} against epochs", (4.4, 3.2), paint)


def few_shot_curve(name: str, rows: list[dict]) -> str:
    """Accuracy against the number of shots, zero-shot as a line."""

    def paint(figure: "Figure", axes: "Axes") -> None:
        for method in [name for name in METHOD_TITLES if name != "zero_shot"]:
            mine = sorted((row["shots"], *_value(row, "all")) for row in rows if row["method"] == method)
            if mine:
                at, mean, std = (np.array(column) for column in zip(*mine, strict=True))
                axes.errorbar(at, 100 * mean, 100 * std, color=COLOURS[method], label=METHOD_TITLES[method],
                              marker="o", capsize=3)  # fmt: skip
        zero_shot = next(_value(row, "all")[0] for row in rows if row["method"] == "zero_shot")
        axes.axhline(100 * zero_shot, color=COLOURS["zero_shot"], linestyle="--", label=METHOD_TITLES["zero_shot"])
        shots = sorted({row["shots"] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, map(str, shots))
        axes.set(xlabel="labelled images a class", ylabel="accuracy, %", title=plain(name))
        axes.legend()

    return draw(f"Accuracy on {name} against shots", (4.8, 3.4), paint)


def confusion(name: str, matrix: np.ndarray, classes: list[str]) -> str:
    """Share of each class's images (rows) by what they were taken for (columns)."""
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

    return draw(f"Confusion matrix of {name}, in percent of each true class", (side, side), paint)


def class_gains(name: str, gains: list[tuple[str, float]]) -> str:
    """Accuracy minus zero-shot's by class, largest gain first; only the extremes of many classes."""
    ordered = sorted(gains, key=lambda pair: -pair[1])
    if len(ordered) > 2 * MOST_BARS:
        ordered = ordered[:MOST_BARS] + ordered[-MOST_BARS:]
    names = [name for name, _ in ordered[::-1]]
    values = 100 * np.array([gain for _, gain in ordered[::-1]])

    def paint(figure: "Figure", axes: "Axes") -> None:
        axes.barh(range(len(names)), values, color=np.where(values < 0, FALL, RISE))
        axes.set_yticks(range(len(names)), map(plain, names))
        axes.axvline(0, color="#444", linewidth=0.8)
        axes.set(xlabel="accuracy minus zero-shot's, points", title=plain(name))
        axes.grid(axis="y", visible=False)

    return draw(f"Gain over zero-shot by class, {name}", (4.4, 0.22 * len(names) + 1.1), paint)
