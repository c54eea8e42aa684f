"""`mmrl predict`: files, folders and tables of images in; lines, JSON and tables out."""

import csv
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from flows.cli import predict_output
from flows.cli.predict_images import find_images
from mmrl_core.data.shards import read_examples
from tests.core.test_predict import TRAINED, noise, save_small
from tests.support.workspace import write_params

MODEL = "models/digits/mmrl-2shot/seed1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: settings, an adapter with a threshold that nothing reaches, and three images."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    save_small(tmp_path / "adapter", abstain={"confidence": "class_cosine", "keep": 0.95, "threshold": 1.0})
    for seed, name in enumerate(["b.png", "a/c.JPG", "a/d.webp"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(seed))
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "._b.png").write_text("what macOS leaves")
    return tmp_path


@pytest.fixture
def predict(folder, mmrl):
    return lambda *arguments, code=0: mmrl("predict", *arguments, "--model", "adapter", code=code)


def read_csv(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_table(path, names) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"path": names}), path)
    else:
        path.write_text("".join(f"{name}\n" for name in ["path", *names]))


def test_a_trained_adapter_labels_its_own_digits(project, mmrl, tmp_path):
    examples = read_examples("data/digits/pool", "val", "base")[::20]
    paths = [tmp_path / f"{example.class_name}.png" for example in examples]
    for path, example in zip(paths, examples, strict=True):
        path.write_bytes(example.image)
    found = json.loads(mmrl("predict", *paths, "--model", MODEL, "--json"))
    assert sum(found[str(path)]["label"] == path.stem for path in paths) >= 4
    assert mmrl("predict", paths[0], "--model", MODEL, "--class", "seven", "--class", "zero").startswith(str(paths[0]))


def test_a_folder_is_walked_in_sorted_order_and_only_its_images_count(predict):
    lines = predict("images", "images/b.png").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "images/a/c.JPG", "images/a/d.webp", "images/b.png", "images/b.png",
    ]  # fmt: skip
    assert all(name in lines[0] for name in TRAINED)


def test_images_of_formats_that_are_not_read_are_counted_and_the_others_labelled(folder, mmrl):
    (folder / "images" / "a" / "IMG.HEIC").write_bytes(b"")
    assert len(mmrl("predict", "images", "--model", "adapter").splitlines()) == 3
    note = "mmrl: 1 files in the format HEIC were left out, the first images/a/IMG.HEIC; convert it to JPEG to use it\n"
    assert mmrl.error == note


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_table_names_images_from_its_own_folder(folder, predict, name):
    write_table(folder / "images" / name, ["b.png", "a/c.JPG"])
    found = json.loads(predict(f"images/{name}", "--json"))
    assert list(found) == ["images/b.png", "images/a/c.JPG"]
    assert set(found["images/b.png"]["probabilities"]) == set(TRAINED)


@pytest.mark.parametrize("out", ["found/labels.csv", "found/labels.parquet"])
def test_a_table_of_labels_says_what_the_json_says(folder, predict, out):
    said = json.loads(predict("images", "--json"))
    assert json.loads(predict("images", "--out", out, "--all", "--json")) == {"images": 3, "unreadable": 0}
    rows = read_csv(out) if out.endswith("csv") else pyarrow.parquet.read_table(out).to_pylist()
    assert [row["path"] for row in rows] == list(said)
    for row, one in zip(rows, said.values(), strict=True):
        assert list(row) == ["path", "label", "probability", *(f"probability:{name}" for name in TRAINED)]
        assert (row["label"], float(row["probability"])) == (one["label"], pytest.approx(one["probability"]))
        assert float(row[f"probability:{one['label']}"]) == float(row["probability"])
    assert [path.name for path in (folder / "found").iterdir()] == [out.split("/")[1]]


def test_a_long_table_is_written_in_parts(folder, predict, monkeypatch):
    monkeypatch.setattr(predict_output, "ROWS", 2)
    predict("images", "images", "--out", "labels.parquet")
    paths = list(map(str, find_images([Path("images")])))
    assert pyarrow.parquet.read_table("labels.parquet")["path"].to_pylist() == paths * 2


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret.png", "does not stay inside its folder"),
        ("a/../../secret.png", "does not stay inside its folder"),
        ("/etc/passwd", "does not stay inside its folder"),
        ("link.png", "leads out of images"),
        ("out/secret.png", "leads out of images"),
    ],
)
def test_a_path_that_leaves_the_tables_folder_is_refused(folder, predict, name, path, message):
    (folder / "secret.png").write_bytes(noise(0))
    os.symlink(folder / "secret.png", folder / "images" / "link.png")
    os.symlink(folder, folder / "images" / "out")
    write_table(folder / "images" / name, ["b.png", path])
    error = predict(f"images/{name}", "--skip-damaged", code=2)
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("target", ["secret.png", "secrets", "nowhere.png"])
def test_a_link_out_of_a_folder_is_refused(folder, predict, target):
    (folder / "secrets").mkdir()
    (folder / "secret.png").write_bytes(noise(0))
    os.symlink(folder / target, folder / "images" / "link.png")
    assert "images/link.png leads out of images" in predict("images", code=2)


def test_links_within_a_folder_are_taken_and_a_circle_of_folders_ends(folder, predict):
    os.symlink("b.png", folder / "images" / "z.png")
    os.symlink(".", folder / "images" / "circle")
    os.symlink("images", folder / "linked")
    assert [line.split(":")[0] for line in predict("linked").splitlines()] == [
        "linked/a/c.JPG", "linked/a/d.webp", "linked/b.png", "linked/z.png",
    ]  # fmt: skip


def test_a_damaged_image_stops_everything_and_leaves_no_table(folder, predict):
    (folder / "images" / "a" / "torn.png").write_bytes(noise(0)[:50])
    for output in (["--json"], ["--out", "labels.csv"]):
        error = predict("images", *output, code=2)
        assert "images/a/torn.png" in error and error.count("\n") == 1
    assert not (folder / "labels.csv").exists()


def test_a_damaged_image_is_listed_without_a_label_if_asked(folder, predict):
    (folder / "images" / "a" / "torn.png").write_bytes(noise(0)[:50])
    lines = predict("images", "images/absent.png", "--skip-damaged").splitlines()
    assert lines[2] == "images/a/torn.png: cannot be read"
    assert lines[4] == "images/absent.png: cannot be read"
    predict("images", "--skip-damaged", "--out", "labels.csv", "--abstain", "--all")
    torn = read_csv("labels.csv")[2]
    assert torn.pop("path") == "images/a/torn.png"
    assert set(torn.values()) == {""}
    found = json.loads(predict("images", "--skip-damaged", "--json"))
    assert found["images/a/torn.png"]["label"] is None


def test_skipped_images_are_counted_on_stderr(folder, mmrl):
    (folder / "images" / "torn.png").write_bytes(b"")
    mmrl("predict", "images", "--model", "adapter", "--skip-damaged")
    assert mmrl.error == "mmrl: 1 of 4 images cannot be read\n"


def test_below_the_adapters_threshold_an_image_is_none_of_these(folder, predict):
    assert predict("images/b.png", "--abstain").startswith("images/b.png: none of these (confidence ")
    predict("images", "--abstain", "--out", "labels.csv")
    rows = read_csv("labels.csv")
    assert [(row["label"], row["probability"], row["abstained"]) for row in rows] == [("none of these", "", "true")] * 3


def test_a_threshold_of_ones_own_overrides_the_adapters(folder, predict):
    said = json.loads(predict("images", "--json"))
    split = sorted(one["confidence"] for one in said.values())[1]
    found = json.loads(predict("images", "--threshold", split, "--json"))
    assert sorted(one["abstained"] for one in found.values()) == [False, False, True]
    for path, one in found.items():
        assert one["abstained"] == (said[path]["confidence"] < split)
        assert one["label"] == ("none of these" if one["abstained"] else said[path]["label"])
    assert not any(one["abstained"] for one in json.loads(predict("images", "--threshold", -1, "--json")).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "--out", "labels.txt"], "end it in .csv or .parquet"),
        (["images", "--out", "params.yaml/x.csv"], "params.yaml is no folder"),
        (["images", "--out", "images/list.csv"], "exists; name a new path"),
        (["images", "--all"], "give --out FILE.csv"),
        (["images", "--threshold", "2"], "less than or equal to 1"),
        (["empty"], "empty: no image is there"),
        (["photos"], "photos: no image that is read is there: 1 files in the format HEIC were left out"),
        (["photos/a.heic"], "photos/a.heic is in the format HEIC, which is not read here; convert it to JPEG"),
        (["photos/b.nef"], "photos/b.nef is in the format camera raw, which is not read here; convert it to JPEG"),
        (["nowhere.csv"], "nowhere.csv cannot be read as csv"),
        (["images/list.csv"], "list.csv has no column path"),
        (["images/list.parquet"], "list.parquet cannot be read as parquet"),
        (["images/gaps.csv"], "gaps.csv, image 2 has no path"),
        (["images", "--class", "cat", "--class", "cat"], "make the same prompt"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder, predict, arguments, message):
    (folder / "empty").mkdir()
    (folder / "photos").mkdir()
    (folder / "photos" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "photos" / "b.nef").write_bytes(b"")
    (folder / "images" / "list.csv").write_text("file\nb.png\n")
    (folder / "images" / "list.parquet").write_text("file\nb.png\n")
    (folder / "images" / "gaps.csv").write_text('path,note\nb.png,x\n"",y\n')
    error = predict(*arguments, code=2)
    assert message in error and error.count("\n") == 1


def test_an_adapter_without_a_threshold_says_how_to_get_one(folder, mmrl):
    save_small(folder / "plain")
    error = mmrl("predict", "images", "--model", "plain", "--abstain", code=2)
    assert "train it again on data with validation images, or give --threshold" in error
    assert "none of these" in mmrl("predict", "images", "--model", "plain", "--threshold", 1)
