"""The Ray Tune search over adapter and training settings; the objective itself is mmrl_core.search."""

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.cluster import connected
from flows.paths import STATE
from flows.progress import progress
from mmrl_core.config import Params
from mmrl_core.presets import explicit_values, published


def open_dimensions(params: Params) -> dict[str, dict[str, list]]:
    """The search space without the keys that params.yaml settles itself."""
    return {key: values for key, values in params.search.space.items() if key not in explicit_values(params)}


def run_search(params: Params, dataset: str, method: str, depth: int, data) -> list[dict[str, Any]]:
    """Run all trials; one record a trial, in the order they were drawn.

    `depth` is N of the backbone's shallower tower, `data` a SearchData. A record holds params, the scores of each
    partition it got to, their means and standard errors; no times, so that a rerun writes the same bytes.
    """
    from ray import tune

    space = open_dimensions(params)
    preset = published(dataset, method, depth)
    start = {key: preset[key] for key, distribution in space.items() if _holds(distribution, preset[key])}
    trainable = tune.with_parameters(_trial, params=params, dataset=dataset, method=method, data=data)
    with connected(params.cluster), _storage(f"tune-{dataset}-{method}") as storage:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": params.cluster.gpus_per_worker}),
            param_space={key: _sampler(distribution) for key, distribution in space.items()},
            tune_config=_tune_config(params, start, params.search.partitions * len(data.seeds)),
            run_config=_run_config(storage, params.search.trials, f"search {dataset} {method}"),
        )
        return [_record(result, space) for result in tuner.fit()]


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


def _tune_config(params: Params, start: dict[str, Any], partitions: int):
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
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
        scheduler=ASHAScheduler(max_t=partitions, grace_period=1, reduction_factor=2) if partitions > 1 else None,
    )


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


def _trial(config: dict, params: Params, dataset: str, method: str, data) -> None:
    """One trial, in a Ray worker: report all scores so far after every partition."""
    from ray import tune

    from mmrl_core.presets import resolve
    from mmrl_core.search import overall, partition_scores, partitions

    backbone = _backbone(params.backbone.name, params.backbone.weights)
    settings = resolve(params, dataset, method, data.seeds[0], backbone.depth, config)
    scores = []
    for partition in partitions(data, params.search.partitions, params.search.seed):
        scores.append(partition_scores(backbone, settings, data, partition))
        tune.report({**overall(scores), "scores": list(scores)})


@functools.cache
def _backbone(name: str, weights: str | None):
    """A reused worker loads the backbone once."""
    from mmrl_core.backbone import load_backbone
    from mmrl_core.training import settle_threads

    backbone = load_backbone(name, weights)
    settle_threads(backbone)
    return backbone


def _record(result, space: dict) -> dict[str, Any]:
    from mmrl_core.search import overall

    if result.error:
        raise getattr(result.error, "cause", None) or result.error
    scores = result.metrics["scores"]
    params = {key: result.config[key] for key in space}
    return {"params": params, **{name: result.metrics[name] for name in overall(scores)}, "scores": scores}
