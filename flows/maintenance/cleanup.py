"""Removing what a project no longer needs: old run folders, old runs, and cached data that no commit uses.

Never what a registered version, a commit or a work tree needs, and nothing of a stage that is running.
"""

import contextlib
import functools
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.project.outputs import is_held
from flows.project.paths import FEATURES, KNOWN, READY, STATE
from flows.registry.decisions import EXPERIMENT as DECISIONS
from flows.settings.params import Params
from flows.tracking import places
from flows.tracking.store import connect, database_file, store_errors, store_uri
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

UNITS = {"d": "days", "h": "hours", "m": "minutes"}
FOLDERS = (
    "runs/*",
    "searches/*/*",
    "features/*",
    "ready/*/*/*/*",
    "known",
    "aside/*",
    "logs/*",
    "predictions/*",
)  # below .mmrl
RAY = "mmrl-ray-*"  # in the temporary folder: left by a killed search whose reaper was killed too
UNUSED = "Removing "  # before each path in what `dvc gc --dry` prints


class Removable(NamedTuple):
    """Something that may go: its kind, its name, its bytes (None: not known), and what removes it."""

    kind: str
    name: str
    size: int | None
    remove: Callable[[], object]


def duration(text: str) -> timedelta:
    """`30d`, `12h`, `90m`. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d{1,6})([dhm])", text)
    if not match:
        raise UserError(f"--older-than {text!r} is no duration; give days, hours or minutes, such as 30d, 12h or 90m")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def removable(params: Params, age: timedelta) -> list[Removable]:
    """Everything that `clean --older-than` removes, without removing it.

    While a stage of this folder is running, these are only Ray's folders and runs of the store.
    """
    before = time.time() - age.total_seconds()
    busy = _is_busy()
    if busy:
        print("a stage is running here: .mmrl and DVC's cache are left alone", file=sys.stderr)
    local = [] if busy else [*_folders(before), *_cache(before)]
    return [*local, *_ray(before), *_runs(store_uri(params), before)]


def _is_busy() -> bool:
    """Whether a process holds a lock of this folder."""
    return any(map(is_held, (STATE / "locks").glob("*.lock")))


def _folders(before: float) -> Iterator[Removable]:
    for pattern in FOLDERS:
        for path in sorted(STATE.glob(pattern)):
            newest, size = _age_and_size(path)
            if newest < before:
                yield Removable("state", str(path), size, functools.partial(_remove, path))


def _ray(before: float) -> Iterator[Removable]:
    from flows.processes.reaper import users_of

    for path in sorted(Path(tempfile.gettempdir()).glob(RAY)):
        with contextlib.suppress(OSError):  # it ends meanwhile
            newest, size = _age_and_size(path)
            if path.stat().st_uid == os.getuid() and newest < before and not users_of(str(path), {os.getpid()}):
                yield Removable("ray", str(path), size, functools.partial(_remove, path))


def _age_and_size(path: Path) -> tuple[float, int]:
    """When anything below a path was last changed, in seconds since 1970, and the bytes of its files; links are not
    followed."""
    entries = [path.lstat()]
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                entries.append(os.lstat(os.path.join(folder, name)))
    newest = max(entry.st_mtime for entry in entries)
    return newest, sum(entry.st_size for entry in entries if not stat.S_ISDIR(entry.st_mode))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _cache(before: float) -> Iterator[Removable]:
    """Old files of DVC's cache that `dvc gc` reports as unused by every commit, this work tree and the others."""
    if not (Path(".dvc").is_dir() and Path(".git").exists()):
        return
    for path in _unused_files():
        with contextlib.suppress(FileNotFoundError):
            newest, size = _age_and_size(path)
            if newest < before:
                yield Removable("dvc", str(path), size, functools.partial(_remove, path))


def _unused_files() -> list[Path]:
    trees = subprocess.run(["git", "worktree", "list", "--porcelain"], capture_output=True, text=True).stdout
    paths = [Path(line.removeprefix("worktree ")) for line in trees.splitlines() if line.startswith("worktree ")]
    others = [str(path) for path in paths if path != Path.cwd().resolve() and (path / ".dvc").is_dir()]
    command = [sys.executable, "-m", "dvc", "gc", "--workspace", "--all-commits", "--dry"]
    done = subprocess.run([*command, *(["--projects", *others] if others else [])], capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "it failed")
        raise UserError(f"`dvc gc --dry` in {Path.cwd()}: {reason}; nothing was removed, mend that first")
    return [Path(line.removeprefix(UNUSED)) for line in done.stdout.splitlines() if line.startswith(UNUSED)]


def _runs(uri: str, before: float) -> Iterator[Removable]:
    """Runs of stages that began before that time and that no registered version needs; decisions always stay."""
    database = database_file(uri)
    if database and not database.exists():
        return
    with store_errors(uri):
        client = connect(uri)
        needed = {version.run_id for version in _all(client.search_model_versions)}
        experiments = [each.experiment_id for each in _all(client.search_experiments) if each.name != DECISIONS]
        runs = [run for experiment in experiments for run in _old_runs(client, experiment, before)]
        needed |= {run.data.tags.get("mlflow.parentRunId") for run in runs if run.info.run_id in needed}
    for run in runs:
        if run.info.run_id not in needed and "stage" in run.data.tags:
            elsewhere = database and places.outside(run.info.artifact_uri, database)
            place = f", with artifacts in {elsewhere}" if elsewhere else ""
            name = f"{run.info.run_name} ({run.info.run_id}){place}"
            yield Removable("mlflow", name, None, functools.partial(_delete_run, client, uri, run.info.run_id))


def _old_runs(client: "MlflowClient", experiment: str, before: float) -> list["Run"]:
    limit = f"attributes.start_time < {int(before * 1000)} and attributes.status != 'RUNNING'"
    return _all(lambda **page: client.search_runs([experiment], limit, **page))


def _all(search: Callable[..., Any]) -> list[Any]:
    """The results of every page of a client's search."""
    page = search()
    results = list(page)
    while page.token:
        page = search(page_token=page.token)
        results += page
    return results


def _delete_run(client: "MlflowClient", uri: str, run_id: str) -> None:
    """Delete a run; where the database is at hand, with its artifacts and for good, as `mlflow gc` does.

    On a tracking server the run is only marked as deleted; `mlflow gc` beside the database removes it.
    """
    with store_errors(uri):
        client.delete_run(run_id)
        if uri.startswith("http"):
            return
        from mlflow.cli import gc

        options = ["--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", run_id]
        with _own_tracking_uri(), contextlib.redirect_stdout(sys.stderr):
            gc.main(options, standalone_mode=False)


@contextlib.contextmanager
def _own_tracking_uri() -> Iterator[None]:
    """MLflow's commands leave the process, and its children, with the tracking URI that they were given (3.17)."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def clean() -> int:
    """Remove frozen features, digests of images, trials of searches and outputs made ahead, which are all made anew;
    the bytes freed."""
    folders = (FEATURES, KNOWN, READY, STATE / "searches")
    inside = (path for folder in folders for path in (folder, *folder.rglob("*")))
    size = sum(path.stat().st_size for path in inside if path.is_file())
    for folder in folders:
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        else:  # a file in its place keeps what saves time from being used
            folder.unlink(missing_ok=True)
    return size
