"""`mmrl embed`: files, folders and tables of images in, features out; and adapters that programs have saved."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch

import mmrl as library
from mmrl_core.predict import Predictor
from tests.core.test_predict import noise, save_small
from tests.support.workspace import write_params


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, without settings: an adapter, and three images."""
    monkeypatch.chdir(tmp_path)
    save_small(tmp_path / "adapter")
    for seed, name in enumerate(["a/c.JPG", "a/d.webp", "b.png"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(seed))
    return tmp_path


PATHS = ["images/a/c.JPG", "images/a/d.webp", "images/b.png"]


def test_a_table_has_a_row_an_image_with_the_features_of_the_library(folder, mmrl):
    said = json.loads(mmrl("embed", "images", "--out", "features.parquet", "--json"))
    table = pyarrow.parquet.read_table("features.parquet")
    assert table.column_names == ["path", "frozen_features"] and table["path"].to_pylist() == PATHS
    assert np.allclose(table["frozen_features"].to_pylist(), library.embed(PATHS), atol=1e-6)
    assert str(table.schema.field("frozen_features").type) == "list<element: float>"
    sha256 = library.load_backbone("tiny").weights_sha256
    facts = {"backbone": "tiny", "weights_sha256": sha256, "width": 128}
    assert said == {"images": 3, "unreadable": 0, **facts, "columns": ["frozen_features"]}
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert metadata == {f"mmrl.{key}": str(value) for key, value in facts.items()}


@pytest.mark.parametrize("out", ["features.parquet", "deep/features.npz"])
def test_with_an_adapter_its_own_features_come_as_well(folder, mmrl, out):
    mmrl("embed", "images", "images/b.png", "--model", "adapter", "--out", out)
    expected = library.load("adapter").features([*PATHS, PATHS[-1]])
    if out.endswith("npz"):
        found = np.load(out)
        assert str(found["mmrl.adapter_sha256"]) == Predictor.load("adapter").card["sha256"]
    else:
        found = pyarrow.parquet.read_table(out).to_pydict()
    assert list(found["path"]) == [*PATHS, PATHS[-1]]
    for name in ("frozen_features", "image_features", "rep_features"):
        assert np.allclose(np.array(found[name]), expected[name], atol=1e-6), name


@pytest.mark.parametrize("out", ["features.parquet", "features.npz"])
def test_an_image_that_cannot_be_read_stops_it_or_keeps_an_empty_row(folder, mmrl, out):
    (folder / "images" / "a" / "broken.png").write_text("no image")
    assert "broken.png is not an image" in mmrl("embed", "images", "--out", out, code=2)
    assert not (folder / out).exists()
    printed = mmrl("embed", "images", "--out", out, "--skip-damaged")
    assert printed.startswith(f"{out}: images 4, unreadable 1, backbone tiny")
    assert mmrl.error == "mmrl: 1 of 4 images cannot be read\n"
    if out.endswith("npz"):
        found = np.load(out)["frozen_features"]
        assert np.isnan(found).all(axis=1).tolist() == [True, False, False, False]
    else:
        rows = pyarrow.parquet.read_table(out).to_pylist()
        assert [row["frozen_features"] is None for row in rows] == [True, False, False, False]
        assert rows[0]["path"] == "images/a/broken.png"


def test_a_table_of_paths_is_read_as_predict_reads_it(folder, mmrl):
    (folder / "list.csv").write_text("picture\nb.png\na/c.JPG\n")
    mmrl("embed", "list.csv", "--column", "picture", "--images", "images", "--out", "features.parquet")
    table = pyarrow.parquet.read_table("features.parquet")
    assert table["path"].to_pylist() == ["images/b.png", "images/a/c.JPG"]


def test_the_backbone_is_that_of_the_settings_where_there_are_any_or_that_of_the_option(folder, mmrl):
    write_params(folder, backbone={"name": "ViT-S-16-that-is-none"})
    assert "'ViT-S-16-that-is-none' is not a model" in mmrl("embed", "images", "--out", "a.npz", code=2)
    assert json.loads(mmrl("embed", "images", "--out", "a.npz", "--backbone", "tiny", "--json"))["backbone"] == "tiny"
    (folder / "other.yaml").write_text((folder / "params.yaml").read_text().replace("ViT-S-16-that-is-none", "tiny"))
    assert "backbone tiny" in mmrl("embed", "images", "--out", "b.npz", "--params", "other.yaml")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out", "x.csv"], "--out x.csv names no table of features; end it in .parquet or .npz"),
        (["--out", "x.npz", "--model", "adapter", "--backbone", "tiny"], "--model brings its own backbone"),
        (["--out", "x.npz", "--weights", "openai"], "--weights openai are of a backbone; name it by --backbone"),
        (["--out", "x.npz", "--backbone", "tinny"], "did you mean tiny?"),
        (["--out", "x.npz", "--model", "nowhere"], "nowhere/adapter.json does not exist"),
        (["--out", "x.npz", "--params", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--out", "adapter"], "--out adapter names no table"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_writes_nothing(folder, mmrl, arguments, line):
    error = mmrl("embed", "images", *arguments, code=2)
    assert line in error and error.count("\n") == 1 and error.startswith("mmrl: ")
    assert not (folder / "x.npz").exists()


def test_it_computes_on_the_settings_device_and_says_where_that_is_not_there(folder, mmrl):
    absent = "mps" if torch.cuda.is_available() else "cuda"
    write_params(folder, device=absent)
    for of in ([], ["--model", "adapter"]):
        mmrl("embed", "images", "--out", "new.npz", *of, code=2)
        assert mmrl.error == f"mmrl: device is {absent}, and PyTorch finds none here; set device to auto or cpu\n"
    assert not (folder / "new.npz").exists()


def test_a_registered_adapter_is_looked_for_in_the_settings_store(folder, mmrl):
    write_params(folder, tracking={"uri": "sqlite:///kept.db"})
    error = mmrl("embed", "images", "--model", "models:/digits-base-to-novel@champion", "--out", "x.npz", code=2)
    assert f"there is no MLflow store at {folder / 'kept.db'}" in error


def test_a_table_that_is_there_is_not_written_over(folder, mmrl):
    (folder / "features.npz").write_text("mine")
    assert "exists; name a new path" in mmrl("embed", "images", "--out", "features.npz", code=2)
    assert (folder / "features.npz").read_text() == "mine"


def test_an_adapter_that_a_program_has_saved_labels_as_the_program_does(folder, mmrl):
    adapter = library.load("adapter")
    adapter.save("again")
    said = json.loads(mmrl("predict", "images", "--model", "again", "--json"))
    for path, one in said.items():
        assert one["probabilities"] == pytest.approx(adapter.predict(path).probabilities, abs=1e-6)
