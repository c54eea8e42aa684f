"""A sqlite store that is moved, copied, or seen by two paths."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.registry import versions
from flows.tracking import places, store
from flows.tracking.places import COLUMNS, is_below, rebase
from mmrl_core.errors import UserError
from tests.support import serving
from tests.support.serving import NAME, URI, settings

LOCAL = "sqlite:///mlflow.db"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a champion, whose name needs escapes in a URI."""
    folder = tmp_path_factory.mktemp("made") / "a b%20é"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        serving.register(1)
        serving.promote(1)
    return folder


@pytest.fixture
def moved(made, tmp_path, monkeypatch):
    """A moved copy as the working directory; where it was is empty."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    there = shutil.copytree(made, tmp_path / "there" / made.name)
    with closing(sqlite3.connect(there / "mlflow.db")) as connection:
        rebase(connection, there)
    monkeypatch.chdir(there.rename(tmp_path / "new é place"))
    return there


def locations(database: str = "mlflow.db") -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [value for table, column in COLUMNS for (value,) in connection.execute(f"SELECT {column} FROM {table}")
                if value and "/mlartifacts/" in value]  # fmt: skip


def test_a_moved_project_predicts_and_what_it_makes_is_in_its_new_folder(moved, capsys):
    assert versions.load(URI).class_names == serving.CLASSES
    said = capsys.readouterr().err
    assert f"locations that named {moved} name {Path.cwd()} now" in said and said.count("\n") == 1
    assert serving.register(2) == 2
    assert all(location.startswith(Path("mlartifacts").absolute().as_uri()) for location in locations())
    assert not moved.exists() and len(list(Path("mlartifacts").rglob("adapter.safetensors"))) == 2
    serving.promote(2)
    assert capsys.readouterr().err == ""


def test_a_copy_leaves_the_folder_alone_that_it_was_copied_from(made, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    serving.register(2)
    serving.promote(2)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert str(made) not in json.dumps(locations())


def test_a_folder_that_is_seen_by_two_paths_was_not_moved(moved, tmp_path, capsys):
    store.connect(store.absolute(LOCAL))
    before = locations()
    (tmp_path / "link").symlink_to(Path.cwd())
    capsys.readouterr()
    assert versions.load(URI, f"sqlite:///{tmp_path}/link/mlflow.db").class_names == serving.CLASSES
    assert locations() == before and capsys.readouterr().err == ""


def test_a_moved_store_that_cannot_be_written_says_so(moved, monkeypatch):
    with closing(sqlite3.connect("mlflow.db")) as blocking:
        blocking.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(places, "PATIENCE", 0)
        with pytest.raises(UserError, match="mlflow.db was moved and names another folder .* cannot be put right"):
            store.connect(store.absolute(LOCAL))


def test_a_folder_mlartifacts_that_was_chosen_elsewhere_is_no_sign_of_a_move(tmp_path, empty_store, capsys):
    (tmp_path / "project" / "mlartifacts" / "promotions").mkdir(parents=True)
    (tmp_path / "shared" / "mlartifacts" / "promotions").mkdir(parents=True)  # another project's
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'project')}"
    chosen = (tmp_path / "shared" / "mlartifacts" / "digits").as_uri()
    store.connect(uri).create_experiment("digits", artifact_location=chosen)
    assert store.connect(uri).get_experiment_by_name("digits").artifact_location == chosen
    assert capsys.readouterr().err == ""
    with closing(sqlite3.connect(tmp_path / "project" / "mlflow.db")) as connection:
        rebase(connection, tmp_path / "project")
    assert is_below(
        store.connect(uri).get_experiment_by_name("digits").artifact_location, tmp_path / "project" / "mlartifacts"
    )


@pytest.mark.parametrize(("location", "below"), [
    ("file:///x/mlartifacts/digits/1", True), ("/x/mlartifacts/digits", True), ("file:///x/mlartifacts", False),
    ("file:///x/mlartifacts/../../etc", False), ("file:///etc", False), ("s3://x/mlartifacts/digits", False),
    ("file:///x/mlartifacts/%2e%2e/%2e%2e/etc", False), ("/x/mlartifacts2/digits", False),
    ("/x/mlartifacts/%2e%2e/%2e%2e/etc", False), ("file:///x/mlartifacts/.\n./etc", False),
    ("/x/mlartifacts/a%00b", False), ("/x/mlartifacts/a%20b", True),
])  # fmt: skip
def test_only_what_does_not_climb_is_below(location, below):
    assert is_below(location, Path("/x/mlartifacts")) is below


def test_what_is_kept_elsewhere_on_purpose_stays_there_and_is_named(tmp_path, monkeypatch, empty_store, capsys, mmrl):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, "mlflow.db")
    client = store.connect(store.absolute(LOCAL))
    client.create_experiment("digits", artifact_location=(tmp_path / "elsewhere").as_uri())
    serving.register(1)
    serving.register(2)
    assert capsys.readouterr().err.count(f"artifacts of experiment digits go to {tmp_path}/elsewhere, outside of") == 1
    run = client.create_run(client.get_experiment_by_name("digits").experiment_id, tags={"stage": "train"}).info.run_id
    client.set_terminated(run)
    Path("params.yaml").write_text(json.dumps(settings().model_dump(mode="json")))
    assert f"with artifacts in {tmp_path}/elsewhere" in mmrl("clean", "--older-than", "0m", "--dry-run")
    assert client.get_model_version(NAME, "1")
