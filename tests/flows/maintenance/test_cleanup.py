"""`mmrl clean --older-than` on real folders, a real DVC repository and a real store."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from flows.project.paths import RunKey
from flows.settings.params import load_params
from flows.tracking import store
from flows.tracking.run import tracked_run
from tests.support.workspace import make_workspace, run

DAY = 86400


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(make_workspace(tmp_path / "project"))
    return tmp_path / "project"


def write(path: Path, days: float, content: str = "x" * 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    age(path, days)
    age(path.parent, days)
    return path


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "30 d", "1w", ""])
def test_a_duration_that_is_none_is_the_users_error(folder, mmrl, text):
    assert "is no duration" in mmrl("clean", f"--older-than={text}", code=2)


def test_what_lies_in_the_place_of_a_folder_goes_too(folder, mmrl):
    known = write(Path(".mmrl/known"), 0)
    digests = write(Path(".mmrl/features/aaa/bb/c.safetensors"), 0)
    freed = known.stat().st_size + digests.stat().st_size
    assert mmrl("clean") == f".mmrl: freed_bytes {freed}\n"
    assert not known.exists() and not digests.exists()


def test_old_run_folders_and_what_a_killed_ray_left_go_and_a_dry_run_only_lists_them(folder, mmrl):
    old, ray = write(Path(".mmrl/runs/aaa/checkpoint.pt"), 40), write(folder.parent / "mmrl-ray-x/session/log", 40)
    for path in (ray.parent, ray.parent.parent):
        age(path, 40)
    fresh = write(Path(".mmrl/runs/bbb/checkpoint.pt"), 40)
    write(Path(".mmrl/runs/bbb/newer.pt"), 1)
    listed = json.loads(mmrl("clean", "--older-than=30d", "--dry-run", "--json"))
    assert {Path(row["name"]).name for row in listed["found"]} == {"aaa", "mmrl-ray-x"} and listed["bytes"] == 20
    assert old.exists() and ray.exists()
    assert "removed: items 2, bytes 20" in mmrl("clean", "--older-than=30d")
    assert not old.parent.exists() and not ray.exists() and fresh.exists()


def test_while_a_stage_holds_its_lock_its_folder_stays(folder, mmrl):
    old = write(Path(".mmrl/runs/aaa/checkpoint.pt"), 40)
    Path(".mmrl/locks").mkdir()
    with FileLock(".mmrl/locks/stage.lock"):
        mmrl("clean", "--older-than=30d")
        assert old.exists()
    mmrl("clean", "--older-than=30d")
    assert not old.exists()


def test_of_dvcs_cache_only_old_files_go_that_no_commit_and_no_work_tree_uses(tmp_path, monkeypatch, mmrl):
    project = make_workspace(tmp_path / "project", dvc=True)
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cached = track(project, "committed", "replaced", "in_use", "dropped", "young")
    run(project, "git", "add", "committed.dvc", "replaced.dvc")
    run(project, "git", *COMMITTER, "commit", "-qm", "x")
    for name in ("replaced", "dropped", "young"):  # the first is still in the commit
        (project / f"{name}.dvc").unlink()
    for name in cached.keys() - {"young"}:
        age(cached[name], 40)
    found = json.loads(mmrl("clean", "--older-than=30d", "--json"))
    assert [(row["kind"], row["name"]) for row in found["found"]] == [("dvc", str(cached["dropped"]))]
    assert [name for name, path in cached.items() if not path.exists()] == ["dropped"]


COMMITTER = ["-c", "user.name=t", "-c", "user.email=t@example.org"]


def track(project: Path, *names: str) -> dict[str, Path]:
    """Add files to DVC, each of which holds its name; where the cache holds them."""
    for name in names:
        (project / name).write_text(name)
    run(project, sys.executable, "-m", "dvc", "add", "-q", *names)
    return {path.read_text(): path for path in (project / ".dvc/cache/files").rglob("*") if path.is_file()}


def test_old_runs_go_with_their_artifacts_but_not_those_that_a_version_stands_on_nor_decisions(folder, mmrl):
    settings = load_params("params.yaml", [])
    uri = store.store_uri(settings)
    write(Path("out/adapter.json"), 0)
    ids = [trained(settings, seed) for seed in (1, 2)]
    client = store.connect(uri)
    client.create_registered_model("digits")
    client.create_model_version("digits", "somewhere", run_id=ids[0])
    decision = client.create_run(store.experiment_id(client, uri, "promotions"), tags={"stage": "x"}).info.run_id
    running = client.create_run(store.experiment_id(client, uri, "digits"), tags={"stage": "train"}).info.run_id
    client.set_terminated(decision)
    foreign = client.create_run(store.experiment_id(client, uri, "digits")).info.run_id
    client.set_terminated(foreign)
    assert json.loads(mmrl("clean", "--older-than=30d", "--json"))["items"] == 0
    found = json.loads(mmrl("clean", "--older-than=0m", "--json"))["found"]
    assert [row["name"].split("(")[1] for row in found if row["kind"] == "mlflow"] == [f"{ids[1]})"]
    assert {path.parents[1].name for path in Path("mlartifacts").rglob("adapter.json")} == {ids[0]}
    left = client.search_runs([one.experiment_id for one in client.search_experiments()], run_view_type=3)
    assert {one.info.run_id for one in left} == {ids[0], decision, running, foreign}
    from mlflow import is_tracking_uri_set  # what MLflow prints is settled when it is imported, by flows.tracking.store

    assert "MLFLOW_TRACKING_URI" not in os.environ and not is_tracking_uri_set()  # as it was before


def trained(settings, seed: int) -> str:
    with tracked_run(settings, RunKey("digits", "mmrl", 2, seed), "train", {}) as tracked:
        tracked.log_artifacts("out")
    return tracked.run_id
