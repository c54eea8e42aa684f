"""The report's figures as inline SVG, the same bytes for the same numbers."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.report.tables import METHOD_TITLES, interval, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {  # Okabe and Ito's, told apart by everyone; a probe is in a lighter form of its method's
    "zero_shot": "#8a8a8a", "linear_probe": "#009e73", "tip_adapter": "#cc79a7", "tip_adapter_f": "#882255",
    "mmrl": "#0072b2", "mmrl+probe": "#56b4e9", "mmrlpp": "#d55e00", "mmrlpp+probe": "#e69f00",
}  # fmt: skip
CURVES = {  # of the metrics of an epoch: what a panel is called, and its unit
    "loss": ("training loss", ""), "val_nll": ("validation: negative log-likelihood", "nats an image"),
    "val_accuracy": ("validation: accuracy", "%"),
}  # fmt: skip
STYLE = {
    "svg.hashsalt": "mmrl", "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "grid.color": "#e5e5e5",
    "legend.frameon": False,
}  # fmt: skip


def draw(alt: str, size: tuple[float, float], paint: Callable[["Figure", "Axes"], None]) -> str:
    """An SVG element `size` inches large; `paint(figure, axes)` fills it, `alt` describes it."""
    return draw_panels(alt, size, lambda figure, panels: paint(figure, panels[0]), 1)


def draw_panels(
    alt: str, size: tuple[float, float], paint: Callable[["Figure", list["Axes"]], None], count: int,
    sharey: bool = False,
) -> str:  # fmt: skip
    """The same of `count` panels side by side, which may share their vertical axis."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]), warnings.catch_warnings():  # default: whatever the user's matplotlibrc says
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text, the browser has the fonts
        figure = Figure(size, layout="constrained")
        paint(figure, list(figure.subplots(1, count, squeeze=False, sharey=sharey)[0]))
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


def forest(rows: list[dict], parts: list[str]) -> str:
    """Gains over zero-shot with their intervals: a row a dataset and method, a panel a part or the harmonic mean.

    A dot is filled where the interval is on one side of 0. Above a dataset's rows is zero-shot's own figure.
    """
    lines = list(_lines(rows))
    places = np.arange(len(lines))[::-1]

    def paint(figure: "Figure", panels: list["Axes"]) -> None:
        for axes, part in zip(panels, parts, strict=True):
            axes.axvline(0, color="#444", linewidth=0.8, zorder=1)
            for place, (_, row) in zip(places, lines, strict=True):
                text = _dot(axes, place, row, part) if "gain" in row else f"zero-shot {100 * _value(row, part)[0]:.1f}"
                axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                              color="#222" if "gain" in row else "#777")  # fmt: skip
            axes.set(xlabel="points", title="accuracy" if part == "all" else part.replace("_", " "))
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].set(ylim=(-0.7, len(lines) - 0.3))
        panels[0].set_yticks(places, [plain(name) for name, _ in lines])
        for label, (_, row) in zip(panels[0].get_yticklabels(), lines, strict=True):
            label.set_fontweight("normal" if "gain" in row else "bold")

    size = (1.6 + 3.2 * len(parts), 0.9 + 0.23 * len(lines))
    names = ", ".join(dict.fromkeys(title(row) for row in rows))
    return draw_panels(f"Gains over zero-shot with 95% intervals: {names}", size, paint, len(parts), sharey=True)


def _lines(rows: list[dict]) -> Iterator[tuple[str, dict]]:
    """Every dataset's name with zero-shot's row, then its methods' names with theirs."""
    for name, of_dataset in groupby(rows, key=title):
        zero_shot, *methods = sorted(of_dataset, key=lambda row: list(METHOD_TITLES).index(row["method"]))
        yield name, zero_shot
        yield from ((METHOD_TITLES[row["method"]], row) for row in methods)


def _dot(axes: "Axes", place: int, row: dict, part: str) -> str:
    """Draw a gain and its interval; returns them as text."""
    gain, colour = row["gain"][part], COLOURS[row["method"]]
    mean, low, high = (100 * gain[name] for name in ("mean", "low", "high"))
    face = colour if low > 0 or high < 0 else "white"
    axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=2)
    axes.plot([mean], [place], "o", color=colour, markerfacecolor=face, markersize=6, zorder=3)
    return interval(gain)


def _value(row: dict, part: str) -> tuple[float, float]:
    if part == "harmonic_mean":
        return row["harmonic_mean"], row["harmonic_mean_std"]
    return row["accuracy"][part]["mean"], row["accuracy"][part]["std"]


def learning_curves(name: str, curves: dict[str, dict[int, list[dict[str, float]]]]) -> str:
    """Metrics of CURVES against epochs, by method and seed: thin lines the seeds, the thick one their mean."""
    epochs = [epoch for seeds in curves.values() for history in seeds.values() for epoch in history]
    shown = [metric for metric in CURVES if any(metric in epoch for epoch in epochs)]

    def paint(figure: "Figure", panels: list["Axes"]) -> None:
        for axes, metric in zip(panels, shown, strict=True):
            for method, seeds in curves.items():
                _curve(axes, method, metric, list(seeds.values()))
            what, unit = CURVES[metric]
            axes.set_title(what, fontsize=10)
            axes.set(xlabel="epoch", ylabel=unit)
            locator: Any = axes.xaxis.get_major_locator()  # a MaxNLocator, where the annotation says Locator
            locator.set_params(integer=True)
        figure.suptitle(plain(name), fontsize=11)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, columnspacing=1)

    what = ", ".join(CURVES[metric][0] for metric in shown)
    return draw_panels(f"{what} of {name} against epochs", (0.4 + 3.5 * len(shown), 3.2), paint, len(shown))


def _curve(axes: "Axes", method: str, metric: str, histories: list[list[dict[str, float]]]) -> None:
    """One metric of a method's seeds, over the epochs that have it; their mean over the epochs that all have."""
    scale = 100 if metric.endswith("accuracy") else 1
    values = [{at: scale * epoch[metric] for at, epoch in enumerate(history, 1) if metric in epoch}
              for history in histories]  # fmt: skip
    for of_seed in values:
        axes.plot(list(of_seed), list(of_seed.values()), color=COLOURS[method], alpha=0.3, linewidth=1)
    common = sorted(set.intersection(*map(set, values)))
    mean = [np.mean([of_seed[at] for of_seed in values]) for at in common]
    axes.plot(common, mean, color=COLOURS[method], label=METHOD_TITLES[method], marker=".")


def few_shot_curve(name: str, rows: list[dict]) -> str:
    """Accuracy against the number of shots, zero-shot as a line."""

    def paint(figure: "Figure", axes: "Axes") -> None:
        for method in (name for name in METHOD_TITLES if name != "zero_shot"):
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
