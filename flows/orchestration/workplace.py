"""The settings of a run of the flow, and a folder of its own to work in, a git worktree; alone.py has the other way."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.orchestration.worktree import link_inputs, uncommitted, worktree
from flows.settings.edit import edit_params
from flows.settings.params import load_params
from flows.tracking.store import store_uri


def changed_settings(
    datasets: list[str] | None, seeds: list[int] | None, search_seed: int | None, overrides: list[str]
) -> list[str]:
    """The changes to params.yaml, as `key.path=value`; the overrides are last and so take precedence."""
    return [
        *([f"datasets={datasets}"] if datasets else []),
        *([f"seeds={seeds}"] if seeds else []),
        *([] if search_seed is None else [f"search.seed={search_seed}"]),
        *overrides,
    ]


def week_seed(start: datetime.datetime) -> int:
    """Year and ISO week of a time as one number, such as 202648: the same for a run and its retries."""
    year, week, _ = start.isocalendar()
    return year * 100 + week


@contextlib.contextmanager
def own_place(params_path: str, changes: list[str], name: str, warn: Callable[[str], object]) -> Iterator[None]:
    """Work in a worktree of the working directory, with its params.yaml changed; it uses the working directory's MLflow
    store and data."""
    checkout = Path.cwd()
    for file in uncommitted(checkout):
        warn(f"{file} has changes that are not committed; this run does not see them")
    with worktree(checkout, name) as root:
        if changes:
            edit_params(root / params_path, changes)
        params = load_params(root / params_path)
        link_inputs(params, checkout, root)
        with _environ("MLFLOW_TRACKING_URI", store_uri(params)), contextlib.chdir(root):
            yield


@contextlib.contextmanager
def _environ(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the time of a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
