"""The Ray Tune search over adapter and training settings; the objective itself is mmrl_core.search."""

import contextlib
import functools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows import paths
from flows.cluster import connected
from flows.features import open_store
from flows.paths import STATE
from flows.progress import progress
from mmrl_core.backbone import Backbone, load_backbone
from mmrl_core.config import Params
from mmrl_core.data.features import FeatureStore
from mmrl_core.data.shards import Example, read_examples, read_manifest
from mmrl_core.errors import UserError
from mmrl_core.presets import explicit_values, published, resolve
from mmrl_core.protocols import PROTOCOLS, labels_of
from mmrl_core.search import SearchData, choose, clearly_worse, leads, overall, partition_scores, partitions
from mmrl_core.templates import template_accuracies
from mmrl_core.training import settle_process


def search_data(params: Params, dataset: str, backbone: Backbone) -> tuple[SearchData, dict[str, float | None]]:
    """The base classes' labelled items, and every template's zero-shot accuracy on those for validation.

    The best template is the data's; of a single template, or without a validation image, nothing is measured.
    """
    protocol = PROTOCOLS[params.data.protocol]
    folders = [paths.few_shot(dataset, max(params.shots), seed) for seed in params.seeds]
    manifest = read_manifest(folders[0])
    names, base = manifest["class_names"], labels_of(manifest, protocol.trains_on)
    accuracies: dict[str, float | None] = dict.fromkeys(manifest["templates"])
    train = [_read(folder, "train", protocol.trains_on) for folder in folders]
    full = params.search.validation == "full"
    val = [_read(paths.pool(dataset) if full else folder, "val", protocol.trains_on) for folder in folders]
    labelled = list({example.path: example for examples in val for example in examples}.values())
    if labelled and len(accuracies) > 1:
        accuracies = template_accuracies(backbone, list(accuracies), names, base, labelled)
    template = max(accuracies, key=lambda one: accuracies[one] or 0)
    return SearchData(names, template, base, params.seeds, train, val, protocol.new_classes), accuracies


def _read(folder: Path, split: str, halves: tuple[str, ...]) -> list[Example]:
    return [example for half in halves for example in read_examples(folder, split, half)]


def search(params: Params, dataset: str, method: str, backbone: Backbone, data: SearchData) -> dict[str, Any]:
    """All trials, which of them is chosen, its settings, and the published ones; no trial where nothing is open."""
    space = open_dimensions(params)
    if not params.search.enabled or not space:
        return {"trials": [], "choice": {}}
    _check_space(params, backbone, data)
    trials = run_search(params, dataset, method, backbone.depth, data)
    preset = published(dataset, method, backbone.depth, params.data.protocol)
    start = {key: value for key, value in preset.items() if key in space}
    chosen = choose(trials, params.search.objective, start)
    return {"published": start, "trials": trials, "chosen": trials.index(chosen), "choice": chosen["params"]}


def _check_space(params: Params, backbone: Backbone, data: SearchData) -> None:
    """What is wrong with the space or the classes is better said before a cluster starts."""
    partitions(data, 1, params.search.seed)
    for value in params.search.space.get("adapter.insertion_depth", {}).get("choice", []):
        if value > backbone.depth:
            raise UserError(
                f"search.space adapter.insertion_depth {value} is beyond the {backbone.depth} layers of backbone "
                f"{params.backbone.name}; choose 1 to {backbone.depth}"
            )


def open_dimensions(params: Params) -> dict[str, dict[str, list]]:
    """The search space without the keys that params.yaml settles itself."""
    return {key: values for key, values in params.search.space.items() if key not in explicit_values(params)}


def run_search(params: Params, dataset: str, method: str, depth: int, data: SearchData) -> list[dict[str, Any]]:
    """Run all trials; one record a trial, in the order they were drawn.

    `depth` is N of the backbone's shallower tower. A record holds params, the scores of each
    partition it got to, their means and standard errors; no times, so that a rerun writes the same bytes.
    """
    from ray import tune

    space = open_dimensions(params)
    preset = published(dataset, method, depth, params.data.protocol)
    start = {key: preset[key] for key, distribution in space.items() if _holds(distribution, preset[key])}
    fixed = {"params": params, "dataset": dataset, "method": method, "data": data}
    store = open_store(params, "tune")
    trainable = tune.with_parameters(_trial, store=store, **fixed)
    with connected(params.cluster), _storage(f"tune-{dataset}-{method}") as storage:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": params.cluster.gpus_per_worker}),
            param_space={key: _sampler(distribution) for key, distribution in space.items()},
            tune_config=_tune_config(params, start),
            run_config=_run_config(storage, params.search.trials, f"search {dataset} {method}"),
        )
        records = [_record(result, space) for result in tuner.fit()]
    if store is not None and store.is_full:  # the workers' own warnings stay in Ray's logs
        print(f"features.budget_gb {params.features.budget_gb:g} was used up: the search computed the rest each time; "
              f"raise it, or `mmrl clean`", file=sys.stderr)  # fmt: skip
    return records


@contextlib.contextmanager
def _storage(name: str) -> Iterator[Path]:
    """Tune's own files, which nobody needs after the search; what a killed one left goes first."""
    folder = STATE / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder.absolute()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _holds(distribution: dict[str, list], value: float) -> bool:
    kind, values = next(iter(distribution.items()))
    return value in values if kind == "choice" else values[0] <= value <= values[1]


def _sampler(distribution: dict[str, list]):
    from ray import tune

    kind, values = next(iter(distribution.items()))
    return tune.choice(values) if kind == "choice" else getattr(tune, kind)(*values)


def _tune_config(params: Params, start: dict[str, Any]):
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    search = params.search
    draws = BasicVariantGenerator(
        points_to_evaluate=[start] if start else None, max_concurrent=search.concurrent, random_state=search.seed
    )
    return tune.TuneConfig(
        metric=search.objective,
        mode="max",
        num_samples=search.trials,
        reuse_actors=True,
        search_alg=draws,
        scheduler=race(search.objective),
    )


def race(objective: str):
    """Trials run in order and end once they are clearly worse than the best so far.

    Not ASHA: it stops by rank after one partition, and which partition is hard says more than which setting is bad.
    """
    from ray.tune.schedulers import FIFOScheduler

    class Race(FIFOScheduler):
        leader: list[dict] = []

        def on_trial_result(self, controller, trial, result):
            return self.STOP if clearly_worse(result["scores"], self.leader, objective) else self.CONTINUE

        def on_trial_complete(self, controller, trial, result):
            if leads(result["scores"], self.leader, objective):
                self.leader = result["scores"]

    return Race()


def _run_config(storage: Path, trials: int, label: str):
    from ray import tune

    class Bar(tune.Callback):
        """Made in the driver by `setup`: Tune pickles a callback before that."""

        def setup(self, **info):
            self.done, self.bars = 0, progress(label, trials)
            self.report = self.bars.__enter__()

        def on_trial_complete(self, iteration, trials, trial, **info):
            self.done += 1
            self.report(self.done)

        def on_experiment_end(self, trials, **info):
            self.bars.__exit__(None, None, None)

    return tune.RunConfig(name="search", storage_path=str(storage), verbose=0, callbacks=[Bar()])


def _trial(
    config: dict, params: Params, dataset: str, method: str, data: SearchData, store: FeatureStore | None
) -> None:
    """One trial, in a Ray worker: report all scores so far after every partition."""
    from ray import tune

    backbone = _backbone(params.backbone.name, params.backbone.weights)
    settings = resolve(params, dataset, method, data.seeds[0], backbone.depth, config)
    scores = []
    for partition in partitions(data, params.search.partitions, params.search.seed):
        scores.append(partition_scores(backbone, settings, data, partition, store))
        tune.report({**overall(scores), "scores": list(scores)})


@functools.cache
def _backbone(name: str, weights: str | None):
    """A reused worker loads the backbone once."""
    backbone = load_backbone(name, weights)
    settle_process(backbone)
    return backbone


def _record(result, space: dict) -> dict[str, Any]:
    if result.error:
        raise getattr(result.error, "cause", None) or result.error
    scores = result.metrics["scores"]
    params = {key: result.config[key] for key in space}
    return {"params": params, **{name: result.metrics[name] for name in overall(scores)}, "scores": scores}
