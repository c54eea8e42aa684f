"""What evaluations found, in the MLflow runs of the trainings: figures to sort them by, and a description."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.project.metrics import read_metrics
from flows.project.paths import RunKey
from flows.registry.descriptions import description, is_due, overall_gain
from flows.registry.versions import training_run
from flows.report.summary import named_runs
from flows.settings.params import Params
from flows.tracking.store import connect, database_file, store_uri, why

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE = "mlflow.note.content"  # the tag that MLflow's page of a run shows as its description, in Markdown
READ, COUNT = ("parts", "adapter_sha256", "protocol", "preset"), "n"


def log_results(params: Params) -> None:
    """Give the run of every training in the settings what its evaluations found, where the store has the run and not
    yet that. What a store misses is a warning and no error: no stage depends on it."""
    uri = store_uri(params)
    database, targets = database_file(uri), dict[RunKey, list[str | None]]()
    if database and not database.exists():
        return
    for key, target in named_runs(params):
        targets.setdefault(key, []).append(target)
    try:
        client = connect(uri)
        for key, of_run in targets.items():
            _log(client, key, {target: read_metrics(key.results(target), READ) for target in of_run})
    except Exception as error:
        later = "`mmrl summarize` sends them once it answers"
        print(f"warning: MLflow lacks results of runs for now, {later}; {why(error, uri)}", file=sys.stderr)


def figures(metrics: Mapping[str, Any], target: str | None = None) -> dict[str, float]:
    """The numbers of a metrics.json by the names of a run's metrics: `test/base_accuracy`, `test/harmonic_mean`,
    `test/gain`, `validation/accuracy`, and so on; of another dataset `test/TARGET/accuracy`. Fractions of 1.
    """
    test, numbers = f"test/{target}/" if target else "test/", dict[str, Any]()
    for part in metrics["parts"]:
        before = "" if part == "all" else f"{part}_"
        numbers |= {f"{test}{before}{name}": value for name, value in metrics[part].items() if name != COUNT}
    if "harmonic_mean" in metrics:
        numbers[f"{test}harmonic_mean"] = metrics["harmonic_mean"]
    if gain := overall_gain(metrics):
        numbers |= {f"{test}gain": gain["mean"], f"{test}gain_low": gain["low"], f"{test}gain_high": gain["high"]}
    for of_part in metrics.get("validation", {}).values():
        numbers |= {f"validation/{name}": value for name, value in of_part.items() if name != COUNT}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}


def _log(client: "MlflowClient", key: RunKey, metrics: Mapping[str | None, Mapping[str, Any]]) -> None:
    """What was found of a run, by target; in one request, and in none where all is there."""
    from mlflow.entities import Metric, RunTag

    own, experiment = metrics[None], client.get_experiment_by_name(key.dataset)
    run = experiment and training_run(client, experiment.experiment_id, own["adapter_sha256"])
    if not run:
        return
    numbers = {name: value for target, one in metrics.items() for name, value in figures(one, target).items()}
    text, now = description(key, own), int(time.time() * 1000)
    new = [Metric(name, value, now, 0) for name, value in numbers.items() if run.data.metrics.get(name) != value]
    note = [RunTag(NOTE, text)] if is_due(text, run.data.tags.get(NOTE)) else []
    if new or note:
        client.log_batch(run.info.run_id, new, tags=note)
