"""What `mmrl summarize` writes: tables of every run's results, and the report. No torch here."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from flows.project import paths
from flows.project.metrics import METRICS as FILE
from flows.project.metrics import WITHOUT_PROBE, read_metrics
from flows.project.paths import RunKey
from flows.project.predictions import read_outcomes
from flows.report import comparisons
from flows.report.figures import CURVES
from flows.report.material import gather
from flows.report.page import Material, page
from flows.report.published import published
from flows.report.tables import (
    WITH_PROBE,
    Key,
    averages,
    csv_text,
    markdown,
    markdown_table,
    results_csv,
    summarise,
)
from flows.settings.params import Params
from mmrl_core.errors import Damaged, UserError
from mmrl_core.evaluation.bootstrap import Outcomes, paired_gains
from mmrl_core.files import write_bytes, write_json
from mmrl_core.search.trial import Trial, read_search_file

Run = tuple[RunKey, str | None]  # a run and the target it is tested on; None is its own dataset
METRICS = ("seed", "target", "parts", "zero_shot", "preset")
SCORES = ("log_likelihood", "log_likelihood_se", "harmonic_mean", "harmonic_mean_se")


def summarize(params: Params, out: Path) -> dict[str, Any]:
    """Fill the folder `out`; results of runs that the settings do not name are listed as stale."""
    runs = named_runs(params)
    summary = read_summary(params, runs)
    material = gather(params, runs)
    rows = summary["rows"] + summary["averages"]
    out.mkdir()
    write_json(out / paths.SUMMARY.name, summary)
    texts = {
        paths.REPORT.name: page(summary, material),
        "results.md": _results_md(summary),
        "results.csv": results_csv(rows),
        **_plots(summary, material),
    }
    for name, text in texts.items():
        write_bytes(out / name, text.encode())
    return {"table": markdown(rows), "stale": summary["stale"]}


def _results_md(summary: dict) -> str:
    text = markdown(summary["rows"] + summary["averages"]) + "\n"
    names, lines = comparisons.table(summary["comparisons"])
    return f"{text}\nPaired differences:\n\n{markdown_table(names, lines)}\n" if lines else text


def named_runs(params: Params) -> list[Run]:
    """Every run of the matrix, on its own dataset and on every target."""
    keys = product(params.datasets, [None, *params.targets], params.kinds, params.shots, params.seeds)
    return [(RunKey(dataset, method, shots, seed), target) for dataset, target, method, shots, seed in keys]


def read_summary(params: Params, runs: Sequence[Run]) -> dict[str, Any]:
    """What summary.json holds. Raises UserError on the first file that is missing or damaged."""
    rows, differences = read_tables(runs)
    named = {str(key.results(target)) for key, target in runs}
    return {
        "protocol": params.data.protocol,
        "preset": params.preset,
        "backbone": params.backbone.name,
        "rows": rows,
        "averages": averages(rows),
        "comparisons": differences,
        "published": published(params.data.protocol),
        "searches": [_search(*pair) for pair in product(params.datasets, params.methods)],
        "stale": sorted(set(map(str, _evaluated())) - named),
    }


def _evaluated() -> Iterator[Path]:
    """The folder of every run's results that there is."""
    for pattern in ("*-to-*/*shot/seed*", "*-to-*/baselines-*shot/*/seed*"):
        yield from Path("results").glob(pattern)


def read_rows(runs: Sequence[Run]) -> list[dict]:
    """The results table from the files of these runs."""
    return read_tables(runs)[0]


def read_tables(runs: Sequence[Run]) -> tuple[list[dict], list[dict]]:
    """The results table, and the comparisons of methods with each other, from the files of these runs."""
    groups: dict[Key, list[Run]] = {}
    for key, target in runs:
        name = (key.dataset, target or key.dataset, key.shots, key.method)
        groups.setdefault(name, []).append((key, target))
    metrics = {name: _same_parts(group) for name, group in groups.items()}
    probed = {name[-1] for name, each in metrics.items() if any(WITHOUT_PROBE in one for one in each)}
    rows: dict[Key, list[dict]] = {}
    outcomes: dict[Key, comparisons.Seeds] = {}
    for name, group in groups.items():
        rows[name] = [_without_probe(one) for one in metrics[name]]
        outcomes[name] = _by_seed(group, f"{WITHOUT_PROBE}_prediction")
        if name[-1] in probed:  # also where validation wants none: then both rows are the same
            fused = (*name[:-1], f"{name[-1]}{WITH_PROBE}")
            rows[fused], outcomes[fused] = metrics[name], _by_seed(group, "prediction")
    gains = {name: paired_gains(list(seeds.values())) for name, seeds in outcomes.items()}
    return summarise(rows, gains), comparisons.compare(outcomes)


def _without_probe(metrics: dict[str, Any]) -> dict[str, Any]:
    """The same with the figures that an adapter has without its probe, where it has one."""
    return metrics | {part: metrics.get(WITHOUT_PROBE, metrics)[part] for part in metrics["parts"]}


def _by_seed(group: Sequence[Run], prediction: str) -> comparisons.Seeds:
    """Each run's outcomes by one of the columns of predictions."""
    return {run[0].seed: _outcomes(*run, prediction) for run in group}


def _same_parts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The metrics of several seeds. Raises UserError where they are of other parts, as after a change of protocol."""
    metrics = [_metrics(*run) for run in runs]
    for one, (key, target) in zip(metrics, runs, strict=True):
        if one["parts"] != metrics[0]["parts"]:
            first, again = runs[0][0].results(runs[0][1]), key.command("evaluate", target)
            raise UserError(
                f"{key.results(target)} was tested on other parts than {first}; run `{again}` again for all"
            )
    return metrics


def _metrics(key: RunKey, target: str | None) -> dict[str, Any]:
    folder, made_by = key.results(target), key.command("evaluate", target)
    metrics = read_metrics(folder, METRICS, made_by)
    sections = [metrics, metrics["zero_shot"], *([metrics[WITHOUT_PROBE]] if WITHOUT_PROBE in metrics else [])]
    for part in metrics["parts"]:
        if any("ece" not in section[part] for section in sections):
            raise Damaged(f"{folder / FILE} has no ece of the part {part}; run `{made_by}` again")
    return metrics


def _outcomes(key: RunKey, target: str | None, prediction: str) -> dict[str, Outcomes]:
    return read_outcomes(key.results(target) / "predictions.parquet", key.command("evaluate", target), prediction)


def _search(dataset: str, method: str) -> dict[str, Any]:
    """The choice and the published setting, each with its scores; the template."""
    made_by = paths.search_command(dataset, method)
    search = read_search_file(paths.search(dataset, method), ("trials", "choice", "template"), made_by=made_by)
    row = {"dataset": dataset, "method": method, "template": search["template"], "trials": len(search["trials"])}
    if not search["trials"]:
        return row
    ahead = search.get("ahead_of", {})
    others = {name: other and _scores(search["trials"][other["trial"]]) for name, other in ahead.items()}
    return {**row, "choice": _scores(search["trials"][search["chosen"]]), **others, "ahead_of": ahead}


def _scores(trial: Trial) -> dict[str, Any]:
    means: dict[str, Any] = {**trial}
    return {"params": trial["params"], "partitions": len(trial["scores"]), **{name: means[name] for name in SCORES}}


def _plots(summary: dict, material: Material) -> dict[str, str]:
    """The tables behind `dvc plots show`; a header alone where there is nothing to show."""
    curves = [
        [name, method, seed, at, *(epoch.get(metric, "") for metric in CURVES)]
        for name, methods in material.curves.items() for method, seeds in methods.items()
        for seed, history in seeds.items() for at, epoch in enumerate(history, 1)
    ]  # fmt: skip
    shots = [
        [row["target"], row["method"], row["shots"], row["accuracy"]["all"]["mean"], row["accuracy"]["all"]["std"]]
        for row in summary["rows"] if summary["protocol"] == "few-shot"
    ]  # fmt: skip
    confused = [
        [exhibit.name, exhibit.classes[actual], exhibit.classes[predicted]]
        for exhibit in material.exhibits
        for (actual, predicted), images in zip(exhibit.pairs, exhibit.counts, strict=True) for _ in range(images)
    ]  # fmt: skip
    return {
        "learning_curves.csv": csv_text(["runs", "method", "seed", "epoch", *CURVES], curves),
        "few_shot_curve.csv": csv_text(["dataset", "method", "shots", "mean", "std"], shots),
        "confusion.csv": csv_text(["runs", "actual", "predicted"], confused),
    }
