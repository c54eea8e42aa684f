"""Rows of results from the metrics of every seed, their averages, and how a row reads.

A row has "source", "target", "shots", "method" ("zero_shot" for the frozen CLIP; with a fused probe "mmrl+probe"),
"seeds", and by part of the protocol ("base" and "novel", or "all") "accuracy", "ece", where temperatures were applied
"ece_uncalibrated", "gain" and what MORE names; fractions of 1.
"""

import csv
import io
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from mmrl_core.protocols import harmonic_mean

WITH_PROBE = "+probe"  # after a method's name: with what few-shot validation fused into it
METHOD_TITLES = {  # in the order of tables and figures
    "zero_shot": "zero-shot CLIP", "linear_probe": "linear probe", "tip_adapter": "Tip-Adapter",
    "tip_adapter_f": "Tip-Adapter-F", "mmrl": "MMRL", f"mmrl{WITH_PROBE}": "MMRL + probe", "mmrlpp": "MMRL++",
    f"mmrlpp{WITH_PROBE}": "MMRL++ + probe",
}  # fmt: skip
MORE = {"macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy", "top5_accuracy": "top-5", "auroc": "AUROC"}
ORDER = list(METHOD_TITLES)
AVERAGE = "average"
CALIBRATION = ("ece", "ece_uncalibrated")

Key = tuple[str, str, int, str]  # source, target, shots, method


def in_order(key: Key) -> tuple[str, str, int, int]:
    """What rows are sorted by: methods as METHOD_TITLES has them."""
    return (*key[:3], ORDER.index(key[3]))


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for a single value), and the values, one a seed."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "values": values}


def summarise(runs: dict[Key, list[dict]], gains: dict[Key, dict]) -> list[dict]:
    """Rows from the metrics.json documents of all seeds of every run, zero-shot first in every group, the others in the
    order of METHOD_TITLES.

    `gains` holds each run's gain over zero-shot with its interval (mmrl_core.evaluation.bootstrap.paired_gains).
    """
    rows, zero_shots = [], {}
    for key, metrics in sorted(runs.items(), key=lambda run: in_order(run[0])):
        source, target, shots, method = key
        group, parts = {"source": source, "target": target, "shots": shots}, metrics[0]["parts"]
        if (source, target, shots) not in zero_shots:
            zero_shot = _aggregate([run["zero_shot"] for run in metrics], parts)
            rows.append({**group, "method": "zero_shot", "seeds": [], **zero_shot})
            zero_shots[source, target, shots] = zero_shot["accuracy"]
        row = {**group, "method": method, "seeds": [run["seed"] for run in metrics], **_aggregate(metrics, parts)}
        ratio = {part: error_ratio(row["accuracy"][part]["mean"], zero_shots[source, target, shots][part]["mean"])
                 for part in parts}  # fmt: skip
        rows.append({**row, "gain": gains[key], "error_ratio": ratio})
    return rows


def _aggregate(metrics: list[dict], parts: list[str]) -> dict[str, Any]:
    accuracy = {part: spread([run[part]["accuracy"] for run in metrics]) for part in parts}
    return {
        "accuracy": accuracy,
        **_harmonic(accuracy),
        **_calibration({part: [run[part] for run in metrics] for part in parts}),
        **{name: _means([_defined(run, parts, name) for run in metrics]) for name in MORE},
    }


def _defined(run: dict, parts: list[str], name: str) -> dict[str, float]:
    """A metric by part; of few classes, and in files of earlier versions, there is none."""
    return {part: run[part][name] for part in parts if name in run[part]}


def _means(each: list[dict[str, float]]) -> dict[str, float]:
    """The mean by part, of the parts that each has."""
    return {part: mean(one[part] for one in each) for part in each[0] if all(part in one for one in each)}


def _calibration(figures: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """ECE by part, a mean over seeds or datasets; and before temperatures where every one of them was given some."""
    names = [name for name in CALIBRATION if all(name in one for each in figures.values() for one in each)]
    return {name: {part: mean(one[name] for one in each) for part, each in figures.items()} for name in names}


def _harmonic(accuracy: dict[str, dict]) -> dict[str, float]:
    """The harmonic mean of the seed means, and its deviation over the seeds."""
    if accuracy.keys() != {"base", "novel"}:
        return {}
    base, novel = accuracy["base"], accuracy["novel"]
    each = [harmonic_mean(*pair) for pair in zip(base["values"], novel["values"], strict=True)]
    return {
        "harmonic_mean": harmonic_mean(base["mean"], novel["mean"]),
        "harmonic_mean_std": spread(each)["std"],
    }


def error_ratio(accuracy: float, reference: float) -> float | None:
    """(1 - accuracy) / (1 - reference); None when the reference makes no error."""
    return (1 - accuracy) / (1 - reference) if reference < 1 else None


def averages(rows: list[dict]) -> list[dict]:
    """Means over the datasets, or where there are targets over these, by shots and method; none over a single one.

    The harmonic mean is that of the averages.
    """
    transfers = [row for row in rows if row["source"] != row["target"]]
    groups: dict[tuple[int, str], list[dict]] = {}
    for row in transfers or rows:
        groups.setdefault((row["shots"], row["method"]), []).append(row)
    return [_average(shots, method, group) for (shots, method), group in groups.items() if len(group) > 1]


def _average(shots: int, method: str, group: list[dict]) -> dict[str, Any]:
    values = {part: [row["accuracy"][part]["values"] for row in group] for part in group[0]["accuracy"]}
    accuracy = {part: spread([mean(seed) for seed in zip(*each, strict=True)]) for part, each in values.items()}
    errors = {part: [{name: row[name][part] for name in CALIBRATION if name in row} for row in group]
              for part in accuracy}  # fmt: skip
    sources = sorted({row["source"] for row in group if row["source"] != row["target"]})
    return {
        "source": " ".join(sources) or AVERAGE, "target": AVERAGE, "shots": shots, "method": method,
        "seeds": group[0]["seeds"], "datasets": len(group), "accuracy": accuracy, **_harmonic(accuracy),
        **_calibration(errors), **{name: _means([row[name] for row in group]) for name in MORE},
    }  # fmt: skip


def header(rows: list[dict]) -> list[str]:
    """The columns of a results table."""
    parts = list(rows[0]["accuracy"])
    if len(parts) == 1:
        return ["dataset", "shots", "method", "accuracy", "gain [95%]", "ECE (uncalibrated)"]
    ece = f"ECE {' / '.join(parts)} (uncalibrated)"
    return ["dataset", "shots", "method", *parts, "harmonic mean", "gain [95%]", ece]


def cells(row: dict) -> list[str]:
    """What a results table shows of a row, in the header's order."""
    parts = list(row["accuracy"])
    both = [f"{100 * row['harmonic_mean']:.1f}"] if "harmonic_mean" in row else []
    overall = "harmonic_mean" if both else parts[0]
    return [
        *named(row),
        *[percent(row["accuracy"][part], row["seeds"]) for part in parts], *both,
        interval(row["gain"][overall]) if "gain" in row else "",
        _errors(row),
    ]  # fmt: skip


def more_table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """A second table, of the metrics in MORE that any row has: its columns, and its lines in percent, part by part."""
    parts, names = list(rows[0]["accuracy"]), [name for name in MORE if any(row[name] for row in rows)]
    by_part = f" {' / '.join(parts)}" if len(parts) > 1 else ""
    lines = [[*named(row), *(_by_part(row[name], parts) for name in names)] for row in rows]
    return ["dataset", "shots", "method", *(MORE[name] + by_part for name in names)], lines if names else []


def _by_part(values: dict[str, float], parts: list[str]) -> str:
    return " / ".join(f"{100 * values[part]:.1f}" if part in values else "–" for part in parts)


def named(row: dict) -> list[str]:
    """What the first columns of every table say: dataset, shots and method."""
    return [title(row), str(row["shots"]), METHOD_TITLES.get(row["method"], row["method"])]


def _errors(row: dict) -> str:
    """`1.2 / 6.0 (1.1 / 9.0)`: with temperatures, and in brackets without; where there are none the one alone."""
    each = [" / ".join(f"{100 * value:.1f}" for value in row[name].values()) for name in CALIBRATION if name in row]
    return each[0] + "".join(f" ({before})" for before in each[1:])


def title(row: dict) -> str:
    """`digits`, or `digits to letters`."""
    return row["source"] if row["source"] == row["target"] else f"{row['source']} to {row['target']}"


def percent(value: dict, seeds: list) -> str:
    deviation = f" ± {100 * value['std']:.1f}" if len(seeds) > 1 else ""
    return f"{100 * value['mean']:.1f}{deviation}"


def interval(gain: dict[str, float]) -> str:
    mean, low, high = (f"{100 * gain[name]:+z.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def markdown(rows: list[dict]) -> str:
    """Results, averages among them, as a Markdown table."""
    return markdown_table(header(rows), map(cells, rows))


def markdown_table(names: list[str], lines: Iterable[list[str]]) -> str:
    """Lines that begin with dataset, shots and method as a Markdown table."""
    all_lines = [names, ["---"] * 3 + ["---:"] * (len(names) - 3), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in all_lines)


def csv_text(names: list[str], lines: Iterable[list]) -> str:
    """A CSV file's text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *lines])
    return text.getvalue()


def results_csv(rows: list[dict]) -> str:
    """One line a row and part; the harmonic mean counts as a part. Fractions of 1, unrounded."""
    names = ["source", "target", "shots", "method", "part", "mean", "std", "gain", "gain_low", "gain_high",
             *CALIBRATION, *MORE]  # fmt: skip
    lines = []
    for row in rows:
        values = {part: (value["mean"], value["std"]) for part, value in row["accuracy"].items()}
        if "harmonic_mean" in row:
            values["harmonic_mean"] = (row["harmonic_mean"], row["harmonic_mean_std"])
        for part, value in values.items():
            gain = row.get("gain", {}).get(part, dict.fromkeys(("mean", "low", "high"), ""))
            fixed = [row["source"], row["target"], row["shots"], row["method"], part]
            more = [row.get(name, {}).get(part, "") for name in (*CALIBRATION, *MORE)]
            lines.append([*fixed, *value, *gain.values(), *more])
    return csv_text(names, lines)
