"""What a project that runs for months can do without: old run folders, runs, and cached data that no commit uses.

Never what a registered version, a commit or a work tree needs; nothing of a stage that is running.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from flows.project.outputs import is_held
from flows.project.paths import FEATURES, READY, STATE
from flows.registry.decisions import EXPERIMENT as DECISIONS
from flows.settings.params import Params
from flows.tracking.store import connect, database_file, store_errors, store_uri
from mmrl_core.errors import UserError

UNITS = {"d": "days", "h": "hours", "m": "minutes"}
FOLDERS = ("runs/*", "searches/*/*", "features/*", "ready/*/*/*/*", "aside/*", "logs/*", "predictions/*")  # below .mmrl
RAY = "mmrl-ray-*"  # in the temporary folder: what a killed search leaves where its reaper was killed too
UNUSED = "Removing "  # before each path in what `dvc gc --dry` prints


class Removable(NamedTuple):
    """Something that may go: its kind, its name, its bytes (None: not known), and what removes it."""

    kind: str
    name: str
    size: int | None
    remove: Callable[[], Any]


def duration(text: str) -> timedelta:
    """`30d`, `12h`, `90m`. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d{1,6})([dhm])", text)
    if not match:
        raise UserError(f"--older-than {text!r} is no duration; give days, hours or minutes, such as 30d, 12h or 90m")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def removable(params: Params, age: timedelta) -> list[Removable]:
    """Everything that `clean --older-than` removes, without removing it.

    While a stage of this folder is running that is Ray's folders and runs of the store alone.
    """
    before = time.time() - age.total_seconds()
    busy = _busy()
    if busy:
        print("a stage is running here: .mmrl and DVC's cache are left alone", file=sys.stderr)
    local = [] if busy else [*_folders(before), *_cache(before)]
    return [*local, *_ray(before), *_runs(store_uri(params), before)]


def _busy() -> bool:
    """Whether any process holds a lock of this folder."""
    return any(map(is_held, (STATE / "locks").glob("*.lock")))


def _folders(before: float) -> Iterator[Removable]:
    for pattern in FOLDERS:
        for path in sorted(STATE.glob(pattern)):
            newest, size = _state(path)
            if newest < before:
                yield Removable("state", str(path), size, lambda path=path: _remove(path))


def _ray(before: float) -> Iterator[Removable]:
    from flows.processes.reaper import users_of

    for path in sorted(Path(tempfile.gettempdir()).glob(RAY)):
        with contextlib.suppress(OSError):  # it ends meanwhile
            newest, size = _state(path)
            if path.stat().st_uid == os.getuid() and newest < before and not users_of(str(path), {os.getpid()}):
                yield Removable("ray", str(path), size, lambda path=path: _remove(path))


def _state(path: Path) -> tuple[float, int]:
    """When anything below a path was last changed, and how many bytes its files take; links count as themselves."""
    found = [path.lstat()]
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.lstat(os.path.join(folder, name)))
    return max(one.st_mtime for one in found), sum(one.st_size for one in found if not _is_folder(one))


def _is_folder(status: os.stat_result) -> bool:
    return (status.st_mode & 0o170000) == 0o040000


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _cache(before: float) -> Iterator[Removable]:
    """Old files of DVC's cache that `dvc gc` calls unused: by every commit, this work tree and the others."""
    if not (Path(".dvc").is_dir() and Path(".git").exists()):
        return
    for line in _unused():
        path = Path(line.removeprefix(UNUSED))
        with contextlib.suppress(FileNotFoundError):
            newest, size = _state(path)
            if newest < before:
                yield Removable("dvc", str(path), size, lambda path=path: _remove(path))


def _unused() -> list[str]:
    trees = subprocess.run(["git", "worktree", "list", "--porcelain"], capture_output=True, text=True).stdout
    paths = [Path(line.removeprefix("worktree ")) for line in trees.splitlines() if line.startswith("worktree ")]
    others = [str(path) for path in paths if path != Path.cwd().resolve() and (path / ".dvc").is_dir()]
    command = [sys.executable, "-m", "dvc", "gc", "--workspace", "--all-commits", "--dry"]
    done = subprocess.run([*command, *(["--projects", *others] if others else [])], capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "it failed")
        raise UserError(f"`dvc gc --dry` in {Path.cwd()}: {reason}; nothing was removed, mend that first")
    return [line for line in done.stdout.splitlines() if line.startswith(UNUSED)]


def _runs(uri: str, before: float) -> Iterator[Removable]:
    """Runs that a stage wrote, that began before, and that no registered version stands on; decisions always stay."""
    database = database_file(uri)
    if database and not database.exists():
        return
    with store_errors(uri):
        client = connect(uri)
        needed = {version.run_id for version in _all(client.search_model_versions)}
        experiments = [one for one in _all(client.search_experiments) if one.name != DECISIONS]
        runs = [run for one in experiments for run in _old_runs(client, one.experiment_id, before)]
        needed |= {run.data.tags.get("mlflow.parentRunId") for run in runs if run.info.run_id in needed}
    for run in runs:
        if run.info.run_id not in needed and "stage" in run.data.tags:
            name = f"{run.info.run_name} ({run.info.run_id})"
            yield Removable("mlflow", name, None, lambda run_id=run.info.run_id: _forget(client, uri, run_id))


def _old_runs(client, experiment: str, before: float) -> list:
    limit = f"attributes.start_time < {int(before * 1000)} and attributes.status != 'RUNNING'"
    return _all(lambda **page: client.search_runs([experiment], limit, **page))


def _all(search: Callable[..., Any]) -> list:
    """Every page of a search."""
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def _forget(client, uri: str, run_id: str) -> None:
    """Delete a run; where the database is at hand, as `mlflow gc` does, with its artifacts and for good.

    On a tracking server it is marked, and `mlflow gc` beside the database ends it.
    """
    with store_errors(uri):
        client.delete_run(run_id)
        if uri.startswith("http"):
            return
        from mlflow.cli import gc

        options = ["--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", run_id]
        with contextlib.redirect_stdout(sys.stderr):
            gc.main(options, standalone_mode=False)


def clean() -> int:
    """Remove frozen features, trials of searches, outputs made ahead; how many bytes that freed. All are made anew."""
    folders = (FEATURES, READY, STATE / "searches")
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return size
