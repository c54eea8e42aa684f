"""The report's section on the search: what was chosen, how far it is ahead, and all trials as pictures."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flows.report.figures import draw, plain
from flows.report.html import files, table
from flows.report.tables import METHOD_TITLES
from mmrl_core.search.trial import Objective, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADER = ["dataset", "method", "setting", "values", "log-likelihood", "harmonic mean", "behind the chosen"]
OBJECTIVES = {"log_likelihood": "log-likelihood, nats an image", "harmonic_mean": "harmonic mean"}
WEIGHT, DEPTH = "adapter.reg_weight", "adapter.insertion_depth"
BINS = 6  # of a heat map's axis
WIDE = 20  # ratio of the largest to the smallest value beyond which an axis is a logarithm
EXPLAINED = """On labelled items of the classes trained on alone. Balanced log-likelihood in nats an image and harmonic
mean, each ± its standard error over the divisions of the classes. Behind the chosen: by how much of the objective, on
the divisions that both were tried on, ± the standard error of that difference. Of settings that cannot be told from the
best the one is chosen that changes the frozen model least: the largest regularisation, then the smaller rate."""


class Search(NamedTuple):
    """One search's trials as its file has them."""

    name: str
    trials: list[Trial]
    chosen: int
    objective: Objective
    file: str


def section(rows: Sequence[dict], searches: Sequence[Search]) -> str:
    """HTML; `rows` are the summary's."""
    lines = [line for row in rows if row["trials"] for line in search_cells(row)]
    if not lines:
        return ""
    drawn = "".join(picture for search in searches for picture in pictures(search))
    sources = ", ".join(search.file for search in searches)
    text = f"<h2>What the search chose</h2><p>{html.escape(EXPLAINED)}</p>"
    return f'{text}{table(HEADER, lines)}<div class="row">{drawn}</div>{files(sources)}'


def search_cells(row: dict) -> list[list[str]]:
    """The choice and, where they are others, the published setting and the runner-up, in HEADER's order."""
    settings = {"chosen": row["choice"]}
    for name in ("published", "runner_up"):
        if row.get(name) and row[name]["params"] not in [shown["params"] for shown in settings.values()]:
            settings[name.replace("_", "-")] = row[name]
    lines = []
    for name, setting in settings.items():
        values = ", ".join(f"{key.partition('.')[2]} {value:.3g}" for key, value in setting["params"].items())
        partitions = setting["partitions"]
        stopped = "" if partitions == row["choice"]["partitions"] else f", stopped after {partitions}"
        likelihood = f"{setting['log_likelihood']:.3f} ± {setting['log_likelihood_se']:.3f}{stopped}"
        harmonic = f"{100 * setting['harmonic_mean']:.1f} ± {100 * setting['harmonic_mean_se']:.1f}"
        ahead = (row.get("ahead_of") or {}).get(name.replace("-", "_"))
        behind = f"{ahead['difference']:.3f} ± {ahead['se']:.3f}" if ahead else ""
        lines.append([row["dataset"], METHOD_TITLES[row["method"]], name, values, likelihood, harmonic, behind])
    return lines


def pictures(search: Search) -> list[str]:
    """A heat map where weight and depth were searched, and parallel coordinates of every key; of trials with scores."""
    scored = [trial for trial in search.trials if trial["scores"]]
    chosen = scored.index(search.trials[search.chosen])
    keys = scored[0]["params"].keys()
    drawn = [heat_map(search.name, scored, chosen, search.objective)] if {WEIGHT, DEPTH} <= keys else []
    return [*drawn, parallel_coordinates(search.name, scored, chosen, search.objective)]


def heat_map(name: str, trials: list[Trial], chosen: int, objective: Objective) -> str:
    """The mean objective of all trials by regularisation weight, in bins, and insertion depth; the trials as dots."""
    weight, depth, reached = (_column(trials, key) for key in (WEIGHT, DEPTH, objective))
    depths = sorted(set(depth))
    edges = bins(weight)
    cells = np.full((len(depths), len(edges) - 1), np.nan)
    column = np.clip(np.searchsorted(edges, weight, side="right") - 1, 0, len(edges) - 2)
    for row, layer in enumerate(depths):
        for place in range(len(edges) - 1):
            inside = (depth == layer) & (column == place)
            cells[row, place] = reached[inside].mean() if inside.any() else np.nan

    def paint(figure: "Figure", axes: "Axes") -> None:
        rows = np.arange(len(depths) + 1) - 0.5
        mesh = axes.pcolormesh(edges, rows, np.ma.masked_invalid(cells), cmap="viridis")
        place = [depths.index(layer) for layer in depth]
        axes.scatter(weight, place, s=14, c="white", edgecolors="black", linewidths=0.6, clip_on=False)
        axes.scatter(weight[[chosen]], [place[chosen]], s=140, facecolors="none", edgecolors="black", label="chosen",
                     clip_on=False)  # fmt: skip
        axes.set_xscale("symlog" if edges[0] <= 0 else "log")  # a logarithm has no place for zero
        axes.set_yticks(range(len(depths)), [f"{layer:g}" for layer in depths])
        axes.set(xlabel="regularisation weight", ylabel="insertion depth", title=plain(name))
        axes.grid(visible=False)
        figure.legend(loc="outside lower right", fontsize=8)
        figure.colorbar(mesh, label=OBJECTIVES[objective])

    return draw(f"Heat map of the search {name}", (5.2, 3.2), paint)


def bins(values: np.ndarray) -> np.ndarray:
    """Edges of bins over positive values by their logarithms; of a few distinct values, one bin each."""
    distinct = np.unique(values)
    if distinct[0] <= 0:
        return np.concatenate([[0], bins(distinct[distinct > 0])]) if len(distinct) > 1 else np.array([0.0, 1.0])
    logs = np.log(distinct)
    if len(distinct) > BINS:
        return np.concatenate([distinct[:1], np.exp(np.linspace(logs[0], logs[-1], BINS + 1))[1:-1], distinct[-1:]])
    if len(distinct) == 1:
        return np.array([distinct[0] / 1.5, distinct[0] * 1.5])
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))


def parallel_coordinates(name: str, trials: list[Trial], chosen: int, objective: Objective) -> str:
    """A line a trial through its value of every key and the objective it reached; the chosen one is thick."""
    keys = [*trials[0]["params"], objective]
    columns = [_column(trials, key) for key in keys]
    places = np.array([_unit(column) for column in columns])
    best = places[-1]

    def paint(figure: "Figure", axes: "Axes") -> None:
        from matplotlib import colormaps

        for index in np.argsort(best):
            thick = index == chosen
            axes.plot(range(len(keys)), places[:, index], color=colormaps["viridis"](best[index]),
                      linewidth=3 if thick else 1.2, alpha=1 if thick else 0.75, zorder=3 if thick else 2)  # fmt: skip
        for place, column in enumerate(columns):
            for text, at in ((column.min(), -0.06), (column.max(), 1.03)):
                axes.annotate(f"{text:.3g}", (place, at), ha="center", fontsize=8)
        axes.set_xticks(range(len(keys)), [key.rpartition(".")[2].replace("_", " ") for key in keys])
        axes.set(ylim=(-0.12, 1.12), yticks=[], title=plain(name))
        axes.spines["left"].set_visible(False)

    return draw(f"Parallel coordinates of the search {name}", (max(4.4, 1.4 * len(keys)), 3.2), paint)


def _unit(column: np.ndarray) -> np.ndarray:
    """Values between 0 and 1, by their logarithms where they span much."""
    if column.min() > 0 and column.max() / column.min() > WIDE:
        column = np.log(column)
    span = column.max() - column.min()
    return (column - column.min()) / span if span else np.full(len(column), 0.5)


def _column(trials: list[Trial], key: str) -> np.ndarray:
    return np.array([trial["params"].get(key, trial.get(key)) for trial in trials], float)
