"""The stages, one command each: what dvc.yaml runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import (
    DEFAULT_PARAMS,
    LARGEST_SEED,
    MOST_SHOTS,
    AsJson,
    Dataset,
    KindOption,
    MethodOption,
    Out,
    Overrides,
    ParamsFile,
    Seed,
    Shots,
    run_stage,
    show,
)
from flows.processes.under_dvc import is_stage
from flows.project import paths
from flows.project.paths import RunKey
from flows.project.progress import progress
from flows.scaffold.upgrade import is_former
from flows.settings.params import Params, load_params
from mmrl_core.errors import UserError


def fingerprint(
    dataset: Annotated[str | None, typer.Option(help="Dataset key.")] = None,
    training: Annotated[bool, typer.Option("--training", help="What training depends on of the protocol.")] = False,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Digest the raw source of a dataset, or what the protocol means for training."""
    from flows.stages import prepare as stage

    if (dataset is None) != training:
        raise UserError("fingerprint needs --dataset KEY, or --training instead")
    if dataset is None:
        run_stage("fingerprint training", params, set_, out, paths.TRAINING, json_, stage.fingerprint_training)
        return
    if is_stage() and is_former():
        raise UserError(
            "dvc.lock is of the release before versions.yaml, and every result would be made again; run `mmrl upgrade` "
            "and repeat, and nothing is"
        )
    run_stage(f"fingerprint {dataset}", params, set_, out, paths.source(dataset), json_,
              lambda p, path: stage.fingerprint(p, dataset, path))  # fmt: skip


def prepare(
    dataset: Dataset,
    shots: Annotated[
        int | None, typer.Option(min=1, max=MOST_SHOTS, help="With --seed: the few-shot set; without: the pool.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=LARGEST_SEED, help="Sampling seed.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Write WebDataset shards: the val and test pool, or with --shots and --seed a few-shot set."""
    from flows.stages import prepare as stage

    if (shots is None) != (seed is None):
        raise UserError("prepare needs --shots and --seed together, or neither for the val and test pool")
    if shots is None or seed is None:
        run_stage(f"prepare {dataset}", params, set_, out, paths.pool(dataset), json_,
                  lambda p, path: stage.prepare_pool(p, dataset, path))  # fmt: skip
        return
    tracked = paths.few_shot(dataset, shots, seed)
    run_stage(f"prepare {dataset} {shots}-shot seed {seed}", params, set_, out, tracked, json_,
              lambda p, path: stage.prepare_few_shot(p, dataset, shots, seed, path))  # fmt: skip


def tune(
    dataset: Dataset, method: MethodOption,
    show_: Annotated[bool, typer.Option("--show", help="The table of the last search; nothing is run.")] = False,
    confirm: Annotated[
        list[int], typer.Option(min=0, max=LARGEST_SEED, help="Compare choice and published setting on this new seed.")
    ] = [],
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Search the open settings on validation data of the base classes; go on with a search that was broken off."""
    from flows.cli.trials_table import trials_of

    tracked = paths.search(dataset, method)
    if confirm:
        from flows.tuning.confirm import confirm as compare

        settings = load_params(params, set_)
        with progress(f"confirm {dataset} {method}"):
            comparison = compare(settings, dataset, method, confirm)
        shown = comparison if json_ else {"ahead": comparison["ahead"]}
        show(shown, json_, f"{tracked}, {comparison['divisions']} new divisions")
        return
    if show_:
        trials = trials_of(out or tracked, paths.search_command(dataset, method))
        show(trials if json_ else {"table": trials["table"]}, json_, trials["chosen"])
        return
    from flows.tuning.search import tune as stage

    run_stage(f"search {dataset} {method}", params, set_, out, tracked, json_,
              lambda p, path: stage(p, dataset, method, path))  # fmt: skip


def train(
    dataset: Dataset, method: KindOption, shots: Shots, seed: Seed, params: ParamsFile = DEFAULT_PARAMS,
    set_: Overrides = [], out: Out = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Train one adapter, or fit a baseline."""
    key = RunKey(dataset, method, shots, seed)
    if _is_item(out):
        from flows.stages.ahead.items import train as stage
    else:
        from flows.stages.train import train as stage
    run_stage(f"train {key.name}", params, set_, out, key.model, json_, lambda p, path: stage(p, key, path))


def evaluate(
    dataset: Dataset, method: KindOption, shots: Shots, seed: Seed,
    target: Annotated[str | None, typer.Option(help="Dataset to score on; by default the run's own.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Score one adapter, and zero-shot, on the test sets of the protocol."""
    key = RunKey(dataset, method, shots, seed)

    def stage(p: Params, path: Path) -> dict[str, Any]:
        if _is_item(out):
            from flows.stages.ahead.items import evaluate as run
        else:
            from flows.stages.evaluate import evaluate as run  # with PyTorch: the first line of progress comes before
        return run(p, key, path, target)

    on = f" on {target}" if target else ""
    run_stage(f"evaluate {key.name}{on}", params, set_, out, key.results(target), json_, stage)


def fit_baselines(
    dataset: Dataset, shots: Shots, params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None,
    json_: AsJson = False,
) -> None:  # fmt: skip
    """Fit all baselines of the settings on frozen features, for all seeds."""
    from flows.stages import baselines as stage

    tracked = paths.models(dataset) / paths.baselines(shots)
    run_stage(f"fit baselines {dataset} {shots}-shot", params, set_, out, tracked, json_,
              lambda p, path: stage.fit_baselines(p, dataset, shots, path))  # fmt: skip


def evaluate_baselines(
    dataset: Dataset, shots: Shots,
    target: Annotated[str | None, typer.Option(help="Dataset to score on; by default the runs' own.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Score all baselines of the settings in one pass over the images."""
    from flows.stages import baselines as stage

    tracked, on = paths.results(dataset, target) / paths.baselines(shots), f" on {target}" if target else ""
    run_stage(f"evaluate baselines {dataset} {shots}-shot{on}", params, set_, out, tracked, json_,
              lambda p, path: stage.evaluate_baselines(p, dataset, shots, path, target))  # fmt: skip


def _is_item(out: Path | None) -> bool:
    """Whether DVC runs the command: then the stage also works ahead. A person who asks for one run gets that alone."""
    return out is None and is_stage()


def summarize(
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False
) -> None:
    """Tables over all runs that the settings name; their figures go to MLflow's runs too."""
    from flows.registry.results import log_results
    from flows.report.summary import summarize as run

    def stage(p: Params, path: Path) -> dict[str, Any]:
        result = run(p, path)
        if out is None:
            log_results(p)
        return result

    run_stage("summarize", params, set_, out, paths.SUMMARY.parent, json_, stage, merge=True)
