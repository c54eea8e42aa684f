"""Several runs of one setting, trained together: their steps are taken at once (mmrl_core/training/stack.py).

On a GPU the steps of six small trainings take little longer than those of one. Each run has its own data, tracked run,
validation figures, probe and files, as if it were trained alone. Its numbers are those it has alone but for rounding,
and so depend in their last bits on which runs were trained with it: what is trained together on a CPU, whose bits are
promised, is each run alone.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.project import paths
from flows.project.outputs import locked
from flows.project.paths import RunKey
from flows.project.progress import ProgressReport, progress
from flows.project.resources import backbone_for, device_here, open_store
from flows.settings.params import Params
from flows.stages.train import ReadyRun, finished, ready_to_train, tracked

if TYPE_CHECKING:
    from flows.tracking.run import Tracked
    from mmrl_core.training.fit import EpochCallback


def trains_together(params: Params) -> bool:
    """Whether runs of one setting are to be trained together here; loads no backbone, which may not fit."""
    return not params.cluster.is_distributed and device_here(params.device).type == "cuda"


def train_together(params: Params, outs: Mapping[RunKey, Path]) -> dict[RunKey, dict[str, Any]]:
    """Train these runs, each into its folder; returns the summaries of the stage `train`.

    A killed call goes on where it was if it is repeated for the same runs. Raises UserError where one of the runs
    cannot be trained: then none of those that take its steps with it is.
    """
    from mmrl_core.training.fit import Training, groups

    runs = [ready_to_train(params, key) for key in sorted(outs)]  # in one order, whoever asks
    trainings = [Training(run.settings.adapter, run.settings.train, run.data) for run in runs]
    summaries: dict[RunKey, dict[str, Any]] = {}
    for group in groups(backbone_for(params), trainings):
        summaries |= _train_group(params, [runs[place] for place in group], outs)
    return summaries


def _train_group(params: Params, runs: Sequence[ReadyRun], outs: Mapping[RunKey, Path]) -> dict[RunKey, dict[str, Any]]:
    from mmrl_core.training.fit import Training, fit_group

    backbone, name = backbone_for(params), _name(runs)
    checkpoints = paths.STATE / "runs" / _identity(runs)
    with ExitStack() as stack:
        records = [stack.enter_context(tracked(params, run)) for run in runs]
        bar = stack.enter_context(progress(f"train {name}", runs[0].settings.train.epochs, what="epoch"))
        for run in runs:
            stack.enter_context(locked(f"run-{run.identity}", f"another process trains {run.key.name}"))
        fitted = fit_group(
            backbone, [Training(run.settings.adapter, run.settings.train, run.data) for run in runs],
            vals=[run.val for run in runs], reports=[_report(record, bar) for record in records],
            checkpoints=checkpoints, store=open_store(params, "train"),
        )  # fmt: skip
        shutil.rmtree(checkpoints, ignore_errors=True)
        return {
            run.key: finished(params, run, backbone, one, record, outs[run.key])
            for run, one, record in zip(runs, fitted, records, strict=True)
        }


def _report(record: "Tracked", bar: ProgressReport) -> "EpochCallback":
    def report(epoch: int, metrics: dict[str, float]) -> None:
        record.log_metrics(metrics, epoch)
        bar(epoch + 1, note=f"loss {metrics['loss']:.3f}")

    return report


def _name(runs: Sequence[ReadyRun]) -> str:
    """`digits/mmrl-16shot/seed1, seed2`."""
    return ", ".join([runs[0].key.name, *(f"seed{run.key.seed}" for run in runs[1:])])


def _identity(runs: Sequence[ReadyRun]) -> str:
    """The name of the checkpoints of runs that are trained together; of a single one its own."""
    if len(runs) == 1:
        return runs[0].identity
    return hashlib.sha256(" ".join(run.identity for run in runs).encode()).hexdigest()[:16]
