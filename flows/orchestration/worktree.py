"""A git worktree for every run of a deployment: two at once disturb neither each other nor the checkout.

Worktrees lie in numbered folders of .mmrl/worktrees. A run holds a lock on its number, which ends with its process, so
the next run can tell and remove what a killed one left.
"""

import contextlib
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

from filelock import FileLock, Timeout

from flows.project.paths import STATE
from flows.settings.params import Params
from mmrl_core.clip.weights.places import DIRECTORY
from mmrl_core.errors import UserError

BRANCH = "mmrl/adapted"
RECORDED = ("dvc.lock", "params.yaml")
SHARED = ("features", "locks", "ready", "runs", "searches")  # of .mmrl: keyed by content and locked
AUTHOR = {"GIT_AUTHOR_NAME": "mmrl flow adapt", "GIT_AUTHOR_EMAIL": "mmrl@localhost",
          "GIT_COMMITTER_NAME": "mmrl flow adapt", "GIT_COMMITTER_EMAIL": "mmrl@localhost"}  # fmt: skip
DVC_PATHS = ("url", "dir", "credentialpath", "keyfile")


@contextlib.contextmanager
def worktree(checkout: Path, name: str) -> Iterator[Path]:
    """A worktree of the commit that `checkout`, a project's folder, is at; it is removed at the end.

    Shares DVC's cache and the state that saves time; logs go to .mmrl/logs/<name> of the checkout. Where git's folder
    is read-only it is a clone instead. Raises UserError where there is no repository or no commit.
    """
    checkout = checkout.resolve()
    inside = _inside_repository(checkout)
    with _slot(checkout) as folder:
        try:
            if os.access(_common(checkout), os.W_OK):
                _git(checkout, "worktree", "add", "--quiet", "--detach", str(folder), "HEAD")
            else:
                _clone(checkout, folder)
            root = folder / inside
            _share(checkout, root, name)
            yield root
        finally:
            _remove(checkout, folder)


def uncommitted(checkout: Path) -> list[str]:
    """Tracked files that differ from the commit: a worktree does not have the changes."""
    _inside_repository(checkout)
    return _git(checkout, "diff", "--name-only", "HEAD").splitlines()


def link_inputs(params: Params, checkout: Path, root: Path) -> None:
    """Link into the worktree the checkout's data that settings name by a relative path and that is not in git."""
    datasets = params.data.own.values()
    own = [path for data in datasets for path in (data.images, data.table, data.shards, data.classes)]
    name = params.backbone.name
    folder = name.removeprefix(DIRECTORY) if name.startswith(DIRECTORY) else None
    for path in filter(None, [params.data.root, params.backbone.weights, folder, *own]):
        plain = Path(*itertools.takewhile(lambda part: not set(part) & set("*?[{"), Path(path).parts))
        if plain.is_absolute() or not (checkout / plain).exists() or (root / plain).exists():
            continue
        (root / plain).parent.mkdir(parents=True, exist_ok=True)
        (root / plain).symlink_to((checkout / plain).resolve())


def record(root: Path, message: str) -> str | None:
    """Commit dvc.lock and params.yaml to the branch mmrl/adapted; the commit, or None where nothing is new.

    None too where git is read-only: a registered version holds both files in its settings.

    The commit's first parent is what the run started from, the second the branch's last commit. The branch is updated
    only if it is still at that one, so two runs that end at once both stay in its history.
    """
    if _git(root, "rev-parse", "--path-format=absolute", "--git-dir") == str(_common(root)):  # a clone
        return None
    _git(root, "add", "--force", "--", *(name for name in RECORDED if (root / name).exists()))
    start, tree = _git(root, "rev-parse", "HEAD"), _git(root, "write-tree")
    if tree == _git(root, "rev-parse", "HEAD^{tree}"):
        return None
    for _ in range(20):
        last = _git(root, "rev-parse", "--quiet", "--verify", f"refs/heads/{BRANCH}", check=False)
        parents = [start, *([last] if last and last != start else [])]
        options = [word for parent in parents for word in ("-p", parent)]
        commit = _git(root, "commit-tree", tree, *options, "-m", message)
        with contextlib.suppress(UserError):  # another run was faster
            _git(root, "update-ref", f"refs/heads/{BRANCH}", commit, last or "0" * 40)
            _git(root, "update-ref", "--no-deref", "HEAD", commit)
            return commit
    raise UserError(f"the branch {BRANCH} cannot be moved; see whether `git branch {BRANCH}` works in {root}")


def _inside_repository(checkout: Path) -> str:
    """The project's folder, relative to the top of its repository. Raises UserError where there is no commit."""
    try:
        inside = _git(checkout, "rev-parse", "--show-prefix")
        _git(checkout, "rev-parse", "--verify", "HEAD")
    except (UserError, OSError) as error:
        raise UserError(
            f"{checkout} is no git repository with a commit, and a worktree starts from one: commit the project, "
            f"or run without a worktree ({error})"
        ) from None
    return inside


def _common(checkout: Path) -> Path:
    """Git's folder, that of the main work tree."""
    return Path(_git(checkout, "rev-parse", "--path-format=absolute", "--git-common-dir"))


def _clone(checkout: Path, folder: Path) -> None:
    """Clone HEAD into a repository of its own that shares the checkout's objects and writes nothing there."""
    commit = _git(checkout, "rev-parse", "HEAD")
    _git(checkout.parent, "clone", "--quiet", "--shared", "--no-checkout", str(_common(checkout)), str(folder))
    _git(folder, "checkout", "--quiet", "--detach", commit)


@contextlib.contextmanager
def _slot(checkout: Path) -> Iterator[Path]:
    """The first numbered folder that no living run holds, empty; held until the end."""
    folders = checkout / STATE / "worktrees"
    folders.mkdir(parents=True, exist_ok=True)
    number, lock = _acquire_number(folders)
    try:
        _remove(checkout, folders / str(number))
        _remove_abandoned(checkout, folders, number + 1)
        yield folders / str(number)
    finally:
        lock.release()


def _acquire_number(folders: Path) -> tuple[int, FileLock]:
    """The first number whose lock is free, and that lock, acquired."""
    number = 0
    while True:
        lock = FileLock(folders / f"{number}.lock", timeout=0)
        try:
            lock.acquire()
            return number, lock
        except Timeout:
            number += 1


def _remove_abandoned(checkout: Path, folders: Path, number: int) -> None:
    """Remove the folders that killed runs left, from a number on up to the first one that does not exist."""
    while (folder := folders / str(number)).exists():
        with contextlib.suppress(Timeout), FileLock(folders / f"{number}.lock", timeout=0):
            _remove(checkout, folder)
        number += 1


def _remove(checkout: Path, folder: Path) -> None:
    """Remove a worktree as far as possible; what remains is removed by the next run."""
    if folder.exists():
        _git(checkout, "worktree", "remove", "--force", "--force", str(folder), check=False)
        shutil.rmtree(folder, ignore_errors=True)
        _git(checkout, "worktree", "prune", check=False)


def _share(checkout: Path, root: Path, name: str) -> None:
    """Link the checkout's shared state and logs into the worktree, and give it the checkout's DVC settings."""
    state = root / STATE
    state.mkdir(exist_ok=True)
    plain = re.sub(r"[^\w-]+", "-", name)  # a person may have named the run
    for source, link in [*((part, part) for part in SHARED), (f"logs/{plain}", "logs")]:
        (checkout / STATE / source).mkdir(parents=True, exist_ok=True)
        (state / link).symlink_to(checkout / STATE / source)
    if not (root / ".dvc").is_dir():
        raise UserError(
            f"{checkout / '.dvc'} is not committed; run `dvc init` and commit .dvc, dvc.yaml and params.yaml"
        )
    with (root / ".dvc" / "config.local").open("w") as file:
        _dvc_config(checkout / ".dvc").write(file)


def _dvc_config(folder: Path) -> ConfigParser:
    """The checkout's DVC settings with absolute paths; cached files are linked rather than copied where possible."""
    config = ConfigParser(interpolation=None)
    config.read_dict({"cache": {"dir": "cache", "type": "reflink,hardlink,copy"}})
    config.read([folder / "config", folder / "config.local"])
    for section in config.values():
        for key in set(DVC_PATHS) & set(section):
            value = section[key].strip("\"'")
            section[key] = value if "://" in value else str((folder / Path(value).expanduser()).resolve())
    return config


def _git(folder: Path, *args: str, check: bool = True) -> str:
    """A git command's stdout. Raises UserError with git's last line where it fails; "" then without `check`."""
    own = {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    done = subprocess.run(["git", *args], cwd=folder, env=own | AUTHOR, capture_output=True, text=True)
    if done.returncode and check:
        raise UserError(f"`git {args[0]}` in {folder}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    return "" if done.returncode else done.stdout.strip()
