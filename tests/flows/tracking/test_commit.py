"""Which commit a run says that it was made of."""

import subprocess
from pathlib import Path

import pytest

from flows.tracking.run import git_commit

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b.c")
FILES = ("dvc.lock", "params.yaml", "code.py", "other/dvc.lock", "project/dvc.lock", "project/params.yaml")


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commit(tmp_path, monkeypatch) -> str:
    """What is checked out in the working directory: one project at its top, two below."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    for name in FILES:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("one")
    git("add", ".")
    git(*AUTHOR, "commit", "-qm", "start")
    return git("rev-parse", "HEAD")


@pytest.mark.parametrize("folder", [".", "project"])
@pytest.mark.parametrize("staged", [False, True])
def test_a_dvc_lock_that_the_run_wrote_is_no_change_of_the_code(commit, monkeypatch, folder, staged):
    monkeypatch.chdir(folder)
    assert git_commit() == commit
    Path("dvc.lock").write_text("two")
    Path("new.txt").touch()  # git does not know it
    if staged:
        git("add", "dvc.lock")
    assert git_commit() == commit
    Path("dvc.lock").unlink()
    assert git_commit() == commit


@pytest.mark.parametrize("changed", [name for name in FILES if name != "project/dvc.lock"])
def test_any_other_file_that_differs_is_also_above_the_project(commit, monkeypatch, changed):
    Path(changed).write_text("two")
    monkeypatch.chdir("project")
    assert git_commit() == f"{commit}-dirty"
    git("add", ":/")
    assert git_commit() == f"{commit}-dirty"


def test_there_is_none_without_a_repository_or_a_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    git("init", "-q")
    assert git_commit() is None
