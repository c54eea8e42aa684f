"""What the flow returns, and whether it has anything to do, found in this process: no server, no MLflow, no child."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.orchestration.prefect_process import is_set_up_otherwise
from flows.project import paths
from flows.settings.params import Params, load_params
from flows.tracking.run import WRITTEN
from mmrl_core.files import json_document

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    from flows.registry.promotion import PromotionDecision
    from flows.registry.versions import RegisteredVersion

WORKSPACES = ("MLFLOW_WORKSPACE", "MLFLOW_ENABLE_WORKSPACES")  # with workspaces a model has more than a name


class Adapted(NamedTuple):
    """The flow's result. `ran` holds the items that did work, without source checks, which always run; `registered` and
    `promoted` are by dataset."""

    ran: list[str]
    up_to_date: int
    registered: dict[str, "RegisteredVersion"]
    promoted: dict[str, "PromotionDecision"]

    @property
    def summary(self) -> str:
        """One line for people."""
        created = [version for version in self.registered.values() if version.created]
        moved = [decision for decision in self.promoted.values() if decision.moved]
        if not (self.ran or created or moved):
            return "nothing to do"
        return (
            f"{len(self.ran)} stages ran, {self.up_to_date} were up to date; "
            f"{len(created)} adapters registered, {len(moved)} promoted"
        )

    @property
    def champions(self) -> list[str]:
        """A line a dataset: what its champion is now."""
        return [f"champion of {dataset}: {decision.champion}" for dataset, decision in self.promoted.items()]


def up_to_date(params_path: str | Path = "params.yaml") -> Adapted | None:
    """What the flow would return where it would do nothing, its lines printed on stderr; None where it would do
    something, or where that is not certain: the flow finds out, and reports what is wrong."""
    try:
        if Path(params_path).resolve() != Path("params.yaml").resolve() or _is_set_up_otherwise():
            return None
        checks, adapted = _up_to_date(load_params(params_path))
    except Exception:  # DVC, git and sqlite raise errors of many kinds; the flow meets the cause again
        return None
    for line in (*checks, adapted.summary):
        print(line, file=sys.stderr)
    return adapted


def _is_set_up_otherwise() -> bool:
    return is_set_up_otherwise() or any(os.environ.get(name) for name in WORKSPACES)


def _up_to_date(params: Params) -> tuple[list[str], Adapted]:
    """The lines of the source checks, and what the flow would return. Raises _SomethingToDo, or any error of DVC's,
    git's or sqlite's."""
    from flows.registry.snapshot import unchanged

    with _repository() as repo:
        changes, stages, commit = repo.status(), _stages(repo), _commit(repo)
    checks = [stage for stage in stages if stage.always_changed]
    if not Path("dvc.yaml").exists() or changes != {stage.addressing: ["always changed"] for stage in checks}:
        raise _SomethingToDo
    registered, promoted = {}, {}
    for dataset in params.datasets:
        if (pair := unchanged(params, dataset, commit)) is None:
            raise _SomethingToDo
        registered[dataset], promoted[dataset] = pair
    lines = [_check(stage, params) for stage in checks]
    return lines, Adapted([], len(stages) - len(checks), registered, promoted)


class _SomethingToDo(Exception):
    """Not an error: something is not up to date."""


@contextlib.contextmanager
def _repository() -> Iterator["Repo"]:
    """DVC's repository of the working directory, locked, with DVC's log lines off. Raises DVC's exceptions, among them
    LockError."""
    with contextlib.redirect_stdout(sys.stdout):  # undone at the end: DVC's import puts a wrapper in its place
        from dvc.logger import set_loggers_level
        from dvc.repo import Repo, lock_repo
    with set_loggers_level(logging.CRITICAL), Repo() as repo, lock_repo(repo):
        if not os.path.samefile(repo.root_dir, "."):
            raise _SomethingToDo
        yield repo


def _stages(repo: "Repo") -> list["PipelineStage"]:
    """Every stage item; not the data sources (`*.dvc`)."""
    from dvc.stage import PipelineStage

    return [stage for stage in repo.index.stages if isinstance(stage, PipelineStage)]


def _commit(repo: "Repo") -> str | None:
    """What `flows.tracking.run.git_commit` returns."""
    from dvc.scm import NoSCM, SCMError, map_scm_exception

    if isinstance(repo.scm, NoSCM):
        return None
    try:
        with map_scm_exception():
            revision = repo.scm.get_rev()
    except SCMError:  # there is no commit yet
        return None
    staged, unstaged, _ = repo.scm.status(untracked_files="no")
    written = os.path.relpath(WRITTEN, repo.scm.root_dir)
    return f"{revision}-dirty" if {*chain(*staged.values()), *unstaged} - {written} else revision


def _check(stage: "PipelineStage", params: Params) -> str:
    """Do what a source check does, without writing; the line that the flow would print. Raises _SomethingToDo where the
    check would change its output, or is not `mmrl fingerprint`."""
    from dvc.dependency import ParamsDependency

    from mmrl_core.data.catalog import fingerprint

    start, dataset = time.monotonic(), stage.cmd.rpartition(" ")[2]
    source = Path.cwd() / paths.source(dataset)
    ours = (f"mmrl fingerprint --dataset {dataset}", [source]) == (stage.cmd, [Path(out.fs_path) for out in stage.outs])
    if not ours or not all(isinstance(dep, ParamsDependency) for dep in stage.deps):
        raise _SomethingToDo
    if source.read_bytes() != json_document(fingerprint(dataset, params.data.root, params.data.own)):
        raise _SomethingToDo
    return f"{stage.addressing}  {time.monotonic() - start:.1f} s"
