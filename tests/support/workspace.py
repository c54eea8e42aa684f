"""A project folder of its own for tests: this repository's pipeline files, settings as asked, an empty DVC cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
QUICK = {"methods": ["mmrl"], "baselines": [], "seeds": [1], "train": {"epochs": 2}, "search": {"enabled": False}}
ADAPTED = {  # of the fixture `adapted`; its training has checkpoints to be killed between
    "methods": ["mmrl"], "baselines": [], "seeds": [1], "shots": [4], "train": {"epochs": 8, "batch_size": 2},
    "search": {"trials": 2, "partitions": 1, "space": {"adapter.insertion_depth": {"choice": [4, 5, 6]}}},
}  # fmt: skip


def write_params(folder: Path, **changes) -> None:
    """The shipped params.yaml with whole keys replaced, sections key by key; digits alone unless asked otherwise."""
    params = {**yaml.safe_load((ROOT / "params.yaml").read_text()), "datasets": ["digits"]}
    for key, value in changes.items():
        params[key] = {**params[key], **value} if isinstance(value, dict) else value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def make_workspace(folder: Path, *, dvc: bool = False, **changes) -> Path:
    """Fill `folder`; with `dvc`, make it a git and DVC repository."""
    folder.mkdir(parents=True, exist_ok=True)
    write_params(folder, **changes)
    shutil.copy(ROOT / "dvc.yaml", folder)
    for name in ("versions.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    if dvc:
        run(folder, "git", "init", "-q")
        run(folder, sys.executable, "-m", "dvc", "init", "-q")
        (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    return folder


def environment() -> dict[str, str]:
    """What a child needs to find `mmrl` and to stay on one core."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


IN_TURN = """
import shlex, sys
from flows.cli import main
for command in sys.argv[1:]:
    sys.argv = ["mmrl", *shlex.split(command)]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


def in_turn(folder: Path, *commands: str) -> str:
    """What these commands of `mmrl` print, all in one process, so that imports are paid once."""
    return run(folder, sys.executable, "-c", IN_TURN, *commands).stdout


def prepare_digits(folder: Path, *commands: str, seeds: tuple[int, ...] = (1,)) -> None:
    """Shards of two shots a class, then more commands of `mmrl`."""
    shards = ("fingerprint", "prepare", *(f"prepare --shots 2 --seed {seed}" for seed in seeds))
    in_turn(folder, *(f"{command} --dataset digits" for command in shards), *commands)


def run_stages(folder: Path) -> None:
    """Every stage that dvc.yaml has for these settings, in one process; `dvc repro` would start one for each."""
    from dvc.repo import Repo

    with Repo(str(folder), uninitialized=True) as repo:
        in_turn(folder, *(stage.cmd.removeprefix("mmrl ") for stage in repo.index.stages))


def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=folder, env=environment(), text=True, capture_output=True)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done
