"""The stages `train` and `evaluate` as DVC runs them, one item of a matrix a process: each process also makes outputs
that other items will be asked for."""

import contextlib
import hashlib
import shutil
import sys
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows.project.outputs import claimed, locked
from flows.project.paths import RunKey
from flows.project.resources import backbone_for
from flows.settings.params import Params
from flows.stages.ahead import identity
from flows.stages.ahead.ready import ReadyOutput
from flows.stages.together import train_together, trains_together
from flows.stages.train import train as train_one
from flows.tracking.redaction import first_line
from mmrl_core.errors import UserError
from mmrl_core.protocols import BASELINES


def train(params: Params, key: RunKey, out: Path) -> dict[str, Any]:
    """`stages.train`; also of the run's other seeds: on a GPU together with them, elsewhere after it, where training
    takes less time than starting a process."""
    if params.cluster.is_distributed or key.method in BASELINES:
        return train_one(params, key, out)
    mine = identity.model(params, key)
    with locked(_lock(mine), f"another process trains {key.name}"):
        summary = mine.take(out)
        if summary is not None:
            return summary
        if trains_together(params):
            return train_with_others(params, key, out)
        summary = train_one(params, key, out)
    others = [key._replace(seed=seed) for seed in params.seeds if seed != key.seed]
    if others and _is_small(params):
        mine.keep(out, summary)  # for this item's next process, should this one be killed
        with TemporaryDirectory(prefix="ahead-", dir=out.parent) as folder:
            for other in others:
                _train_ahead(params, other, Path(folder, str(other.seed)))
        mine.drop()
    return summary


def train_with_others(params: Params, key: RunKey, out: Path) -> dict[str, Any]:
    """Train the run together with its other seeds that are not trained and that no other process trains. Where that
    fails the run is trained alone, and each of the others by its own item, which says what is wrong with it."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="ahead-", dir=out.parent))
        outs, places = {key: out}, {}
        for other in (key._replace(seed=seed) for seed in params.seeds if seed != key.seed):
            place = _place_to_fill(params, other)
            if place and stack.enter_context(claimed(_lock(place))) and not place.is_there:
                outs[other], places[other] = Path(folder, str(other.seed)), place
        if not places:
            return train_one(params, key, out)
        try:
            summaries = train_together(params, outs)
        except UserError as error:
            print(f"{key.name} is trained by itself: {first_line(error)}", file=sys.stderr)
            shutil.rmtree(out, ignore_errors=True)
            return train_one(params, key, out)
        for other, place in places.items():
            place.keep(outs[other], summaries[other])
    return summaries[key]


def _place_to_fill(params: Params, key: RunKey) -> ReadyOutput | None:
    """Where another run's adapter would be kept; None where it is trained, or its data is missing."""
    try:
        place = identity.model(params, key)
        return None if place.is_there or identity.is_trained(params, key) else place
    except UserError:
        return None


def _is_small(params: Params) -> bool:
    from mmrl_core.training.process import is_small

    return is_small(backbone_for(params))


def _train_ahead(params: Params, key: RunKey, out: Path) -> None:
    """Train another run, unless it is trained or another process trains it. Where its data is missing or the training
    fails nothing is kept: its own item reports that."""
    place = _place_to_fill(params, key)
    if place is None:
        return
    with claimed(_lock(place)) as is_mine:
        try:
            if is_mine and not place.is_there:
                place.keep(out, train_one(params, key, out))
        except Exception as error:
            print(f"{key.name} is not trained ahead: {first_line(error)}", file=sys.stderr)


def evaluate(params: Params, key: RunKey, out: Path, target: str | None = None) -> dict[str, Any]:
    """`stages.evaluate`, in one pass over the images with all runs of the matrix that are trained and not evaluated."""
    mine = identity.results(params, key, target, key.model)
    summary = mine.take(out)
    if summary is not None:
        return summary
    with locked(_lock_of_images(key, target), f"another process evaluates runs on {target or key.dataset}"):
        summary = mine.take(out)
        return _evaluate_all(params, key, out, target) if summary is None else summary


def _evaluate_all(params: Params, key: RunKey, out: Path, target: str | None) -> dict[str, Any]:
    from flows.stages.evaluate import RunToEvaluate, evaluate_each, runs_at_once

    with TemporaryDirectory(prefix="ahead-", dir=out.parent) as folder:
        runs, places = [RunToEvaluate(key, key.model, out)], {}
        for other, adapter, place in islice(_not_evaluated(params, key, target), runs_at_once(key, target) - 1):
            runs.append(RunToEvaluate(other, adapter, Path(folder, place.identity)))
            places[other] = place
        for run in runs:
            run.out.mkdir()
        summaries = evaluate_each(params, runs, target)
        for run in runs[1:]:
            if run.key in summaries:
                places[run.key].keep(run.out, summaries[run.key])
    return summaries[key]


def _not_evaluated(params: Params, key: RunKey, target: str | None) -> Iterator[tuple[RunKey, Path, ReadyOutput]]:
    """Other runs of the matrix on the dataset, with the folders of their adapters and the places of their results."""
    for axes in product(params.methods, params.shots, params.seeds):
        other = RunKey(key.dataset, *axes)
        with contextlib.suppress(UserError, OSError):  # there is no adapter yet, or its item takes it right now
            adapter = _adapter(params, other)
            place = identity.results(params, other, target, adapter)
            if other != key and not place.is_there and not identity.is_evaluated(params, other, target, adapter):
                yield other, adapter, place


def _adapter(params: Params, key: RunKey) -> Path:
    """Where the run's adapter of these settings lies. Raises UserError where there is none."""
    place = identity.model(params, key)
    if place.is_there:
        return place.output
    if not identity.is_trained(params, key):
        raise UserError(f"{key.model} is not trained with these settings; run `{key.command('train')}` first")
    return key.model


def _lock(place: ReadyOutput) -> str:
    return f"ready-{place.identity}"


def _lock_of_images(key: RunKey, target: str | None) -> str:
    """A lock of this working directory alone: another worktree evaluates with other settings."""
    folder = key.results(target).parents[1].absolute()
    return f"images-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
