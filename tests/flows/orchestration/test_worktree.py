"""Worktrees of deployed runs, on real git and DVC repositories."""

import datetime
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.orchestration.workplace import week_seed
from flows.orchestration.worktree import BRANCH, link_inputs, record, uncommitted, worktree
from flows.settings.edit import edit_params
from flows.settings.params import load_params
from mmrl_core.errors import UserError
from tests.support.workspace import make_workspace, run


def git(folder, *args):
    return run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", *args).stdout.strip()


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    folder = make_workspace(tmp_path_factory.mktemp("committed") / "project", dvc=True)
    (folder / "dvc.lock").write_text("schema: '2.0'\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "start")
    return folder


@pytest.fixture
def project(committed, tmp_path):
    return shutil.copytree(committed, tmp_path / "project")


def test_a_worktree_has_what_is_committed_and_vanishes_with_its_block(project):
    (project / "params.yaml").write_text("half-edited")
    assert uncommitted(project) == ["params.yaml"]
    with worktree(project, "../one") as root:
        assert load_params(root / "params.yaml").datasets == ["digits"]
        cache = run(root, sys.executable, "-m", "dvc", "cache", "dir").stdout.strip()
        assert Path(cache) == project / ".dvc/cache"
        (root / ".mmrl/searches/seen").touch()
        (root / ".mmrl/logs/train.log").touch()
    assert not root.exists()
    assert (project / ".mmrl/searches/seen").exists() and (project / ".mmrl/logs/-one/train.log").exists()
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert (project / "params.yaml").read_text() == "half-edited"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a folder read-only needs root")
def test_where_git_is_read_only_a_run_works_in_a_clone_and_records_nothing(project):
    git(project, "worktree", "add", "-q", "--detach", "other")  # one of git's own, whose folder is elsewhere
    mount = ["mount", "--bind", project / ".git", project / ".git"]
    subprocess.run(mount, check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", project / ".git"], check=True)
        for checkout in (project, project / "other"):
            with worktree(checkout, "one") as root:
                edit_params(root / "params.yaml", ["train.epochs=3"])
                assert record(root, "a run") is None
                assert git(root, "status", "--porcelain") == "M params.yaml"
            assert not root.exists()
    finally:
        subprocess.run(["umount", "-l", project / ".git"], check=True)
    assert git(project, "branch", "--list", BRANCH) == ""


def test_two_at_once_have_folders_of_their_own_and_both_stay_in_the_history(project):
    with worktree(project, "one") as one, worktree(project, "two") as two:
        assert one != two
        commits = []
        for root in (one, two):
            edit_params(root / "params.yaml", [f"train.epochs={len(commits) + 3}"])
            commits.append(record(root, "a run"))
            assert git(root, "rev-parse", "HEAD") == commits[-1]
    assert git(project, "rev-parse", BRANCH) == commits[1]
    assert git(project, "rev-parse", f"{BRANCH}^1") == git(project, "rev-parse", "HEAD")
    assert git(project, "rev-parse", f"{BRANCH}^2") == commits[0]
    assert uncommitted(project) == []


def test_many_that_record_at_the_same_time_lose_none(project):
    with worktree(project, "a") as a, worktree(project, "b") as b, worktree(project, "c") as c:
        for number, root in enumerate((a, b, c)):
            edit_params(root / "params.yaml", [f"train.epochs={number + 3}"])
        threads = [threading.Thread(target=record, args=(root, root.name)) for root in (a, b, c)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    messages = git(project, "log", "--format=%s", BRANCH).splitlines()
    assert sorted(messages) == ["0", "1", "2", "start"]


def test_a_run_that_changes_nothing_commits_nothing(project):
    with worktree(project, "one") as root:
        assert record(root, "a run") is None
    assert git(project, "branch", "--list", BRANCH) == ""


KILLED = """
import os, signal, sys
from pathlib import Path
from flows.orchestration.worktree import worktree
with worktree(Path.cwd(), "killed") as root:
    (root / "left").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_gone_when_the_next_one_starts(project):
    subprocess.run([sys.executable, "-c", KILLED], cwd=project, check=False)
    assert (project / ".mmrl/worktrees/0/left").exists()
    with worktree(project, "next") as root:
        assert not (root / "left").exists()
        assert len(git(project, "worktree", "list").splitlines()) == 2


def test_data_named_by_a_relative_path_is_the_checkouts(project):
    (project / "data/raw").mkdir(parents=True)
    (project / "pictures").mkdir()
    (project / "clip").mkdir()
    with worktree(project, "one") as root:
        edit_params(root / "params.yaml", ["data.own.birds.images=pictures", "backbone.name=local-dir:clip"])
        link_inputs(load_params(root / "params.yaml"), project, root)
        assert (root / "data/raw").resolve() == project / "data/raw"
        assert (root / "pictures").resolve() == project / "pictures"
        assert (root / "clip").resolve() == project / "clip"
    assert (project / "pictures").is_dir()


def test_relative_remotes_mean_the_same_place_in_a_worktree(project):
    dvc = [sys.executable, "-m", "dvc"]
    run(project, *dvc, "remote", "add", "--local", "backup", "../backup")
    assert "url = ../../backup" in (project / ".dvc/config.local").read_text()
    with worktree(project, "one") as root:
        assert str(project.parent / "backup") in run(root, *dvc, "remote", "list").stdout


def test_without_a_commit_the_message_says_what_to_do(tmp_path):
    folder = make_workspace(tmp_path / "new", dvc=True)
    with pytest.raises(UserError, match="commit the project, or run without a worktree"), worktree(folder, "one"):
        pass


def test_the_weeks_seed_is_the_same_all_week_and_another_the_next():
    days = [datetime.datetime(2026, 12, 28) + datetime.timedelta(days=day) for day in range(8)]
    assert [week_seed(day) for day in days] == [202653] * 7 + [202701]
