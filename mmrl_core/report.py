"""Tables of results over seeds: the summary that tools read, and the page that people read."""

import html
from statistics import mean, stdev

from mmrl_core.protocols import harmonic_mean

METHOD_TITLES = {"zero_shot": "zero-shot CLIP", "mmrl": "MMRL", "mmrlpp": "MMRL++"}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>MMRL Ops: results</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
 div {{ overflow-x: auto; }}
 table {{ border-collapse: collapse; width: 100%; margin: 1rem 0; }}
 th, td {{ text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap; }}
 td.text, th.text {{ text-align: left; }}
 footer {{ color: #666; font-size: .85rem; }}
</style>
<h1>Results</h1>
<p>Accuracy in percent, mean &plusmn; standard deviation over seeds. Harmonic mean: of the seed means. Zero-shot is the
same frozen CLIP without an adapter, on the same images with the same prompts. Gain: in harmonic mean over zero-shot,
with the 95% interval of a paired bootstrap over test images and seeds. ECE: expected calibration error in percent, the
mean gap between confidence and accuracy, on base and on novel classes.</p>
{results}
{searches}
<footer>{notes}</footer>
</html>
"""


SEARCHES = """<h2>What the search chose</h2>
<p>On labelled items of the base classes alone, divided at random into classes trained on and classes kept out. Balanced
log-likelihood in nats an image and harmonic mean of the two accuracies, each &plusmn; its standard error over the
divisions. The published setting is kept where the best does not beat it by more than one standard error.</p>
{table}"""
HEADER = ["dataset", "shots", "method", "base", "novel", "harmonic mean", "gain [95%]", "ECE base / novel"]
SEARCH_HEADER = ["dataset", "method", "setting", "values", "log-likelihood", "harmonic mean"]
TEXT = {"dataset", "method", "setting", "values"}  # columns set left


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0}


def aggregate(metrics: list[dict]) -> dict:
    """One row from the metrics.json documents of all seeds. The harmonic mean is that of the seed means."""
    base = spread([one["base"]["accuracy"] for one in metrics])
    novel = spread([one["novel"]["accuracy"] for one in metrics])
    return {
        "base": base,
        "novel": novel,
        "harmonic_mean": harmonic_mean(base["mean"], novel["mean"]),
        "harmonic_mean_std": spread([one["harmonic_mean"] for one in metrics])["std"],
        "ece": {half: mean(one[half]["ece"] for one in metrics) for half in ("base", "novel")},
    }


def summarise(runs: dict[tuple[str, int, str], list[dict]], gains: dict[tuple[str, int, str], dict]) -> list[dict]:
    """Rows by dataset, shots and method from `runs[dataset, shots, method]`, zero-shot first in every group.

    `gains` holds each method's gain over zero-shot with its interval (uncertainty.paired_gains).
    """
    rows, seen = [], {}
    for (dataset, shots, method), metrics in sorted(runs.items()):
        group = {"dataset": dataset, "shots": shots}
        if (dataset, shots) not in seen:
            seen[dataset, shots] = zero_shot = aggregate([one["zero_shot"] for one in metrics])
            rows.append({**group, "method": "zero_shot", "seeds": [], **zero_shot})
        row = {**group, "method": method, "seeds": [one["seed"] for one in metrics], **aggregate(metrics)}
        ratio = error_ratio(row["base"]["mean"], seen[dataset, shots]["base"]["mean"])
        rows.append({**row, "gain": gains[dataset, shots, method], "base_error_ratio": ratio})
    return rows


def error_ratio(accuracy: float, reference: float) -> float | None:
    """(1 - accuracy) / (1 - reference); None when the reference makes no error."""
    return (1 - accuracy) / (1 - reference) if reference < 1 else None


def cells(row: dict) -> list[str]:
    """What the results table shows of a row, in HEADER's order."""

    def percent(value: dict) -> str:
        deviation = f" ± {100 * value['std']:.1f}" if len(row["seeds"]) > 1 else ""
        return f"{100 * value['mean']:.1f}{deviation}"

    return [
        row["dataset"], str(row["shots"]), METHOD_TITLES[row["method"]],
        percent(row["base"]), percent(row["novel"]), f"{100 * row['harmonic_mean']:.1f}",
        _interval(row["gain"]["harmonic_mean"]) if "gain" in row else "",
        f"{100 * row['ece']['base']:.1f} / {100 * row['ece']['novel']:.1f}",
    ]  # fmt: skip


def _interval(gain: dict[str, float]) -> str:
    mean, low, high = (f"{100 * gain[name]:+z.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def search_cells(row: dict) -> list[list[str]]:
    """The choice and, where it is another, the published setting, in SEARCH_HEADER's order."""
    settings = {"chosen": row["choice"]}
    if row["published"] and row["published"] != row["choice"]:
        settings["published"] = row["published"]
    lines = []
    for title, found in settings.items():
        values = ", ".join(f"{key.partition('.')[2]} {value:.3g}" for key, value in found["params"].items())
        stopped = "" if found["partitions"] == row["choice"]["partitions"] else f", stopped after {found['partitions']}"
        likelihood = f"{found['log_likelihood']:.3f} ± {found['log_likelihood_se']:.3f}{stopped}"
        harmonic = f"{100 * found['harmonic_mean']:.1f} ± {100 * found['harmonic_mean_se']:.1f}"
        lines.append([row["dataset"], METHOD_TITLES[row["method"]], title, values, likelihood, harmonic])
    return lines


def markdown(rows: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = [HEADER, ["---"] * 3 + ["---:"] * (len(HEADER) - 3), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(rows: list[dict], searches: list[dict], notes: list[str]) -> str:
    """One self-contained HTML page; `searches` as flows.summary.read_searches gives them."""
    lines = [line for row in searches if row["trials"] for line in search_cells(row)]
    chosen = SEARCHES.format(table=_table(SEARCH_HEADER, lines)) if lines else ""
    footer = "<br>".join(map(html.escape, notes))
    return PAGE.format(results=_table(HEADER, list(map(cells, rows))), searches=chosen, notes=footer)


def _table(header: list[str], lines: list[list[str]]) -> str:
    def line(tag: str, values: list[str]) -> str:
        kinds = (' class="text"' if name in TEXT else "" for name in header)
        pairs = zip(kinds, values, strict=True)
        return "<tr>" + "".join(f"<{tag}{kind}>{html.escape(value)}</{tag}>" for kind, value in pairs) + "</tr>"

    body = "\n".join(line("td", values) for values in lines)
    return f"<div><table><thead>{line('th', header)}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
