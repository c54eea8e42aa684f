"""`mmrl predict`: files, folders and tables of images in; lines, JSON and tables out."""

import csv
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from flows.cli.predict import output as predict_output
from flows.cli.predict.images import find_images
from mmrl_core.data.own.dataset import open_source
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.shards import read_examples
from mmrl_core.errors import UserError
from mmrl_core.light import predictor
from mmrl_core.method.adapter_card import FOLDED
from tests.core.test_predict import TRAINED, noise, save_small
from tests.support.alter import alter_card
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


def test_few_images_and_many_are_labelled_alike_with_numpy_and_with_pytorch(folder, predict, monkeypatch):
    few = json.loads(predict("images", "--json"))
    lines = predict("images", "--threshold", "0.5")
    monkeypatch.setattr(predictor, "FEW", 2)
    many = json.loads(predict("images", "--json"))
    assert list(few) == list(many) and predict("images", "--threshold", "0.5") == lines
    for one, other in zip(few.values(), many.values(), strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-5)


def test_pytorch_computes_on_the_settings_device_and_says_where_it_is_not_there(folder, mmrl, monkeypatch):
    absent = "mps" if torch.cuda.is_available() else "cuda"
    elsewhere = ["images", "--model", "adapter", "--set", f"device={absent}"]
    without_torch = mmrl("predict", *elsewhere)
    monkeypatch.setattr(predictor, "FEW", 2)
    mmrl("predict", *elsewhere, code=2)
    assert mmrl.error == f"mmrl: device is {absent}, and PyTorch finds none here; set device to auto or cpu\n"
    assert mmrl("predict", *elsewhere[:3], "--set", "device=cpu") == without_torch


def test_an_older_adapter_folder_is_labelled_by_as_before_and_needs_no_settings(folder, predict):
    said = predict("images")
    (folder / "params.yaml").unlink()
    alter_card(folder / "adapter", lambda card: card.pop("folded_sha256"))
    (folder / "adapter" / FOLDED).unlink()
    assert predict("images") == said


def test_a_folder_whose_third_file_was_altered_is_refused(folder, predict):
    (folder / "adapter" / FOLDED).write_bytes((folder / "adapter" / FOLDED).read_bytes()[:-4] + b"\0\0\0\0")
    error = predict("images", code=2)
    assert "folded.safetensors does not match the sha256 in its card" in error and error.count("\n") == 1


def test_a_folder_is_walked_in_sorted_order_and_only_its_images_count(predict):
    lines = predict("images", "images/b.png").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "images/a/c.JPG", "images/a/d.webp", "images/b.png", "images/b.png",
    ]  # fmt: skip
    assert all(name in lines[0] for name in TRAINED)


@pytest.mark.usefixtures("without_heif")
def test_images_of_formats_that_are_not_read_are_counted_and_the_others_labelled(folder, mmrl):
    (folder / "images" / "a" / "IMG.HEIC").write_bytes(b"")
    assert len(mmrl("predict", "images", "--model", "adapter").splitlines()) == 3
    note = "mmrl: 1 files in the format HEIC were left out, the first images/a/IMG.HEIC; to use it, convert it to JPEG"
    assert mmrl.error == f"{note}, or `pip install 'mmrl-ops[heif]'`\n"


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


def test_classes_from_a_file_may_share_a_name_whose_probability_is_their_sum(folder, mmrl):
    (folder / "classes.txt").write_bytes("\ufeffmissile\r\n\r\n  crane \nmissile\nsunglasses\n".encode())
    arguments = ["predict", "images", "--model", "adapter", "--classes", "classes.txt"]
    said = json.loads(mmrl(*arguments, "--json"))
    assert mmrl.error.startswith("mmrl: classes share a name (missile 2 times): ")
    names = ["missile", "crane", "sunglasses"]
    typed = [argument for name in ("missile", "crane", "missile", "sunglasses") for argument in ("--class", name)]
    assert json.loads(mmrl("predict", "images", "--model", "adapter", *typed, "--json")) == said
    for one in said.values():
        assert list(one["probabilities"]) == names
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert mmrl(*arguments).count("missile") == 3  # once for each image
    mmrl(*arguments, "--out", "labels.csv", "--all")
    for row, one in zip(read_csv("labels.csv"), said.values(), strict=True):
        assert list(row) == ["path", "label", "probability", *(f"probability:{name}" for name in names)]
        assert float(row["probability:missile"]) == pytest.approx(one["probabilities"]["missile"])


def test_classes_may_come_from_the_table_that_names_those_of_ones_own_data(folder, predict):
    (folder / "names.csv").write_text("class,name\n0,wren\n1,robin\n")
    found = json.loads(predict("images/b.png", "--classes", "names.csv", "--json"))
    assert set(found["images/b.png"]["probabilities"]) == {"wren", "robin"}


def test_a_name_too_long_for_a_prompt_is_said_on_stderr_and_labelled_by_all_the_same(folder, mmrl):
    long = " ".join("abcdefgh" * 10)
    found = json.loads(
        mmrl("predict", "images/b.png", "--model", "adapter", "--class", long, "--class", "cat", "--json")
    )
    assert set(found["images/b.png"]["probabilities"]) == {long, "cat"}
    assert mmrl.error.startswith("mmrl: prompts are cut at 77 tokens, ") and "has 84 tokens" in mmrl.error


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
        ("link.png", "link.png is a link out of images"),
        ("out/secret.png", "out/secret.png is a link out of images"),
    ],
)
def test_a_path_that_leaves_the_tables_folder_is_refused(folder, predict, name, path, message):
    (folder / "secret.png").write_bytes(noise(0))
    os.symlink(folder / "secret.png", folder / "images" / "link.png")
    os.symlink(folder, folder / "images" / "out")
    write_table(folder / "images" / name, ["b.png", path])
    error = predict(f"images/{name}", "--skip-damaged", code=2)
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path", "gone.png"], "line 2: cannot find images/gone.png"),
        (["path", "notes.txt"], "line 2: notes.txt is no image by its extension"),
        (["path", "a"], "line 2: a is no regular file"),
        (["path,label", "b.png"], "line 2 has 1 columns, the header 2"),
        (["path", '"b.png'], "cannot read the table"),
        (["path,path", "b.png,b.png"], "more than one column 'path'"),
        (["path", "s3://bucket/b.png"], "line 2: s3://bucket/b.png is a URL; copy the images here"),
        (["path"], "has no rows"),
    ],
)
def test_a_table_that_training_refuses_is_refused_before_the_model_is_loaded(folder, mmrl, rows, message):
    (folder / "images" / "list.csv").write_text("".join(f"{row}\n" for row in rows))
    error = mmrl("predict", "images/list.csv", "--model", "nowhere", code=2)
    assert message in error and error.count("\n") == 1
    with pytest.raises(UserError) as training:
        open_source("mine", OwnSection(table="images/list.csv", columns={"label": "path"}))
    assert error == f"mmrl: {training.value}\n"


def test_a_table_is_read_as_training_reads_it(folder, predict):
    """Byte order mark, line ends of Windows, spaces around names, another name of the column."""
    (folder / "images" / "list.csv").write_bytes(
        b"\xef\xbb\xbf FILE_name ,size\r\n b.png,big\r\n\r\na//c.JPG,small\r\n"
    )
    assert list(json.loads(predict("images/list.csv", "--json"))) == ["images/b.png", "images/a/c.JPG"]


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_column_and_a_folder_may_be_named(folder, predict, name):
    rows = {"path": ["1", "2"], "photo": ["b.png", "a/c.JPG"], "note": ["x" * 9, "y"]}
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table(rows), folder / name)
    else:
        lines = [",".join(rows), *map(",".join, zip(*rows.values(), strict=True))]
        (folder / name).write_text("\n".join(lines))
    found = json.loads(predict(name, "--column", "photo", "--images", "images", "--json"))
    assert list(found) == ["images/b.png", "images/a/c.JPG"]


def test_an_export_of_label_studio_is_predicted_choices_or_not(folder, predict):
    (folder / "images" / "project.csv").write_text(
        'annotation_id,annotator,choice,image\n1,1,"cat",/data/upload/7/b.png\n2,1,,/data/local-files/?d=a/c.JPG\n'
    )
    assert list(json.loads(predict("images/project.csv", "--json"))) == ["images/b.png", "images/a/c.JPG"]


def test_an_image_that_a_table_names_and_that_is_gone_is_listed_if_asked(folder, predict):
    write_table(folder / "images" / "list.csv", ["gone.png", "b.png"])
    lines = predict("images/list.csv", "--skip-damaged").splitlines()
    assert lines[0] == "images/gone.png: cannot be read" and lines[1].startswith("images/b.png: ")


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_of_a_long_wide_table_only_the_paths_come_into_memory(folder, name):
    """Three million bytes of text beside three thousand paths, which come one at a time."""
    rows = {"path": ["b.png"] * 3000, **{f"text {number}": ["x" * 100] * 3000 for number in range(10)}}
    write = pyarrow.parquet.write_table if name.endswith("parquet") else pyarrow.csv.write_csv
    write(pyarrow.table(rows), folder / "images" / name)
    tracemalloc.start()
    try:
        assert sum(1 for _ in find_images([Path("images", name)])) == 3000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


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


@pytest.mark.usefixtures("without_heif")
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
        (["photos/a.heic"], "photos/a.heic is in the format HEIC, which is not read here; convert it to JPEG, or `pip"),
        (["photos/b.nef"], "photos/b.nef is in the format camera raw, which is not read here; convert it to JPEG"),
        (["nowhere.csv"], "the table nowhere.csv is not there"),
        (["images/list.csv"], "list.csv has no column 'path'; its header holds 'where', 'what'; call one path, image,"),
        (["images/list.csv"], "or say which it is: `--column NAME`"),
        (["images/list.csv", "--column", "wher"], "list.csv has no column 'wher'; did you mean 'where'?"),
        (["images/list.csv", "--column", "where", "--images", "empty"], "list.csv, line 2: cannot find empty/b.png"),
        (["images/list.csv", "--column", "where", "--images", "gone"], "the images folder gone is not there; correct"),
        (
            ["images", "--column", "where"],
            "--column and --images are of tables; give one that ends in .csv or .parquet",
        ),
        (["images/list.parquet"], "cannot read the table images/list.parquet"),
        (["images/gaps.csv"], "gaps.csv, line 3: path is ''"),
        (["images/two.csv"], "its columns 'image' and 'File' may be the path; say which, such as `--column image`"),
        (["images", "--class", "cat", "--class", "cat"], "make the same prompt"),
        (["images", "--class", "cat", "--classes", "no.txt"], "--class and --classes no.txt both name the classes"),
        (["images", "--classes", "no.txt"], "cannot read --classes no.txt (No such file or directory)"),
        (["images", "--classes", "images"], "cannot read --classes images (Is a directory)"),
        (["images", "--classes", "images/b.png"], "b.png is no text in UTF-8"),
        (["images", "--classes", "blank.txt"], "--classes blank.txt names no class; write a name a line"),
        (["images", "--class", "cat", "--class", " "], "the class ' ' is empty"),
        (["images", "--class", "cat", "--class", "\udcff"], "is no text in UTF-8"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder, predict, arguments, message):
    (folder / "empty").mkdir()
    (folder / "photos").mkdir()
    (folder / "photos" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "photos" / "b.nef").write_bytes(b"")
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "images" / "list.csv").write_text("where,what\nb.png,x\n")
    (folder / "images" / "two.csv").write_text("image,File\nb.png,b.png\n")
    (folder / "images" / "list.parquet").write_text("file\nb.png\n")
    (folder / "images" / "gaps.csv").write_text('path,note\nb.png,x\n"",y\n')
    error = predict(*arguments, code=2)
    assert message in error and error.count("\n") == 1


def test_an_adapter_without_a_threshold_says_how_to_get_one(folder, mmrl):
    save_small(folder / "plain")
    error = mmrl("predict", "images", "--model", "plain", "--abstain", code=2)
    assert "train it again on data with validation images, or give --threshold" in error
    assert "none of these" in mmrl("predict", "images", "--model", "plain", "--threshold", 1)
