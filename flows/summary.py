"""What the summary is made of: every run's metrics and predictions, and every search's choice. No torch here."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from flows import paths
from flows.paths import RunKey
from flows.predictions import read_outcomes
from mmrl_core.config import Params
from mmrl_core.files import read_json
from mmrl_core.report import summarise
from mmrl_core.uncertainty import paired_gains

METRICS = ("seed", "base", "novel", "harmonic_mean", "zero_shot")
SCORES = ("log_likelihood", "log_likelihood_se", "harmonic_mean", "harmonic_mean_se")


def read_rows(keys: Sequence[RunKey]) -> list[dict]:
    """The results table from the files of these runs. Raises UserError on the first that is missing or damaged."""
    runs: dict[tuple[str, int, str], list[RunKey]] = {}
    for key in keys:
        runs.setdefault((key.dataset, key.shots, key.method), []).append(key)
    metrics = {name: [_metrics(key) for key in group] for name, group in runs.items()}
    outcomes = {name: [read_outcomes(key.results() / "predictions.parquet") for key in group]
                for name, group in runs.items()}  # fmt: skip
    return summarise(metrics, {name: paired_gains(group) for name, group in outcomes.items()})


def _metrics(key: RunKey) -> dict[str, Any]:
    return read_json(key.results() / "metrics.json", made_by="mmrl evaluate", keys=METRICS)


def read_searches(params: Params) -> list[dict]:
    """One row a dataset and method: the choice and the published setting, each with its scores; the template."""
    return [_search(dataset, method) for dataset, method in product(params.datasets, params.methods)]


def _search(dataset: str, method: str) -> dict[str, Any]:
    found = read_json(paths.search(dataset, method), made_by="mmrl tune", keys=("trials", "choice", "template"))
    row = {"dataset": dataset, "method": method, "template": found["template"], "trials": len(found["trials"])}
    if not found["trials"]:
        return row
    published = next((trial for trial in found["trials"] if trial["params"] == found["published"]), None)
    return {**row, "choice": _scores(found["trials"][found["chosen"]]), "published": published and _scores(published)}


def _scores(trial: dict) -> dict[str, Any]:
    return {"params": trial["params"], "partitions": len(trial["scores"]), **{name: trial[name] for name in SCORES}}
