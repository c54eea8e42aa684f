"""Tables of results over seeds: the summary that tools read, and the page that people read."""

import html
from statistics import mean, stdev

from mmrl_core.protocols import harmonic_mean

METHOD_TITLES = {"zero_shot": "zero-shot CLIP", "mmrl": "MMRL", "mmrlpp": "MMRL++"}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>MMRL Ops: results</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
 div {{ overflow-x: auto; }}
 table {{ border-collapse: collapse; width: 100%; margin: 1rem 0; }}
 th, td {{ text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap; }}
 th:first-child, td:first-child, th:nth-child(3), td:nth-child(3) {{ text-align: left; }}
 footer {{ color: #666; font-size: .85rem; }}
</style>
<h1>Results</h1>
<p>Accuracy in percent, mean &plusmn; standard deviation over seeds. Harmonic mean: of the seed means.
Zero-shot is the same frozen CLIP without an adapter, on the same images.</p>
{tables}
<footer>{notes}</footer>
</html>
"""


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
        "ece": {half: mean(one[half]["ece"] for one in metrics) for half in ("base", "novel")},
    }


def summarise(runs: dict[tuple[str, int, str], list[dict]]) -> list[dict]:
    """Rows by dataset, shots and method from `runs[dataset, shots, method]`, zero-shot first in every group."""
    rows, seen = [], set()
    for (dataset, shots, method), metrics in sorted(runs.items()):
        if (dataset, shots) not in seen:
            seen.add((dataset, shots))
            zero_shot = aggregate([one["zero_shot"] for one in metrics])
            rows.append({"dataset": dataset, "shots": shots, "method": "zero_shot", "seeds": [], **zero_shot})
        seeds = [one["seed"] for one in metrics]
        rows.append({"dataset": dataset, "shots": shots, "method": method, "seeds": seeds, **aggregate(metrics)})
    return rows


def cells(row: dict) -> list[str]:
    """What a table shows of a row: dataset, shots, method, base, novel, harmonic mean."""

    def percent(value: dict) -> str:
        deviation = f" ± {100 * value['std']:.1f}" if len(row["seeds"]) > 1 else ""
        return f"{100 * value['mean']:.1f}{deviation}"

    title = METHOD_TITLES[row["method"]]
    return [
        row["dataset"], str(row["shots"]), title,
        percent(row["base"]), percent(row["novel"]), f"{100 * row['harmonic_mean']:.1f}",
    ]  # fmt: skip


HEADER = ["dataset", "shots", "method", "base", "novel", "harmonic mean"]


def markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADER, ["---"] * 3 + ["---:"] * 3, *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(rows: list[dict], notes: list[str]) -> str:
    """One self-contained HTML page."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in rows)
    table = f"<div><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    return PAGE.format(tables=table, notes="<br>".join(map(html.escape, notes)))
