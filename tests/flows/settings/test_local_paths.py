"""Paths in settings and on the command line: ~ is the home folder, and a URL is none."""

from pathlib import Path

import pytest

from flows.settings.params import load_params
from flows.tracking.store import store_uri
from mmrl_core.data import catalog
from mmrl_core.errors import UserError
from tests.core.data.own.own_data import Folder
from tests.core.test_predict import noise, save_small
from tests.support.workspace import write_params

PATHS = ["data.root", "backbone.weights", "data.own.birds.images", "data.own.birds.table", "data.own.birds.shards",
         "data.own.birds.classes"]  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Somebody's home folder, and a working directory with settings beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path / "work")
    write_params(tmp_path / "work")
    return tmp_path / "home"


def settings(key, value):
    beside = ["data.own.birds.table=list.csv"] if key.endswith("classes") else []
    return load_params("params.yaml", [f"{key}={value}", *beside])


def at(params, key):
    section, *keys = key.split(".")
    values = params.model_dump()[section]
    for name in keys:
        values = values[name]
    return values


@pytest.mark.parametrize("key", [*PATHS, "cluster.storage", "cluster.data"])
def test_a_tilde_in_a_setting_is_the_home_folder_and_no_other_path_changes(home, key):
    assert at(settings(key, "~/x/y*.tar"), key) == f"{home}/x/y*.tar"
    for other in ("/x/~/y", *([] if key == "cluster.storage" else ["x/../y", "~nobody-is-called-so/x"])):
        assert at(settings(key, other), key) == other


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("url", ["s3://bucket/birds", "hf://datasets/a/b", "memory://x", "file:///x"])
def test_a_setting_that_must_be_a_path_refuses_a_url_by_its_key(home, key, url):
    with pytest.raises(UserError, match=rf"{key} is '{url}', which cannot be: a URL is no path; copy .* `dvc get-url"):
        settings(key, url)


@pytest.mark.parametrize("key", ["cluster.storage", "cluster.data"])
def test_what_nodes_read_and_write_may_be_a_url(home, key):
    assert at(settings(key, "s3://bucket/~x"), key) == "s3://bucket/~x"


@pytest.mark.parametrize("place", ["setting", "environment"])
def test_the_store_may_lie_in_the_home_folder(home, monkeypatch, place):
    uri = "sqlite:///~/runs/mlflow.db"
    if place == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    params = load_params("params.yaml", [f"tracking.uri={uri}"] if place == "setting" else [])
    assert store_uri(params) == f"sqlite:///{home}/runs/mlflow.db"


def test_a_fingerprint_is_the_same_whether_the_home_folder_is_written_out_or_not(home):
    Folder(home / "birds").fill("wren", 2).fill("robin", 2)

    def fingerprint(path):
        return catalog.fingerprint("birds", "", settings("data.own.birds.images", path).data.own)

    assert fingerprint("~/birds") == fingerprint(f"{home}/birds")


def test_on_the_command_line_the_home_folder_is_found_where_the_shell_leaves_the_tilde(home, mmrl):
    save_small(home / "adapter")
    write_params(home)
    (home / "b.png").write_bytes(noise(0))
    printed = mmrl("predict", "~/b.png", "--model=~/adapter", "--out=~/labels.csv", "--params=~/params.yaml")
    assert printed.startswith(f"{home}/labels.csv: images 1")
    assert not Path("~").exists()


@pytest.mark.parametrize("arguments", [
    ["predict", "s3://bucket/a.png"], ["predict", "a.png", "--model", "s3://bucket/adapter"],
    ["predict", "a.png", "--out", "s3://bucket/labels.csv"], ["predict", "a.png", "--params", "s3://bucket/params.yaml"],
    ["check", "s3://bucket"], ["export", "--out", "s3://bucket/onnx"], ["backup", "s3://bucket/store.tar"],
    ["fingerprint", "--dataset", "digits", "--out", "s3://bucket/x"],
    ["import", "s3://bucket/model.pth.tar", "--out", "mine", "--class", "cat"],
])  # fmt: skip
def test_a_url_on_the_command_line_is_refused_in_one_line(home, mmrl, arguments):
    (home.parent / "work" / "a.png").write_bytes(noise(0))
    [url] = [argument for argument in arguments if "://" in argument]
    error = mmrl(*arguments, code=2)
    assert error.startswith(f"mmrl: {url}: a URL is no path; copy what it names here") and error.count("\n") == 1
