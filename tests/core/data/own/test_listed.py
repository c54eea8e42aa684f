"""Tables as other programs write them: columns by other names, Label Studio's exports, Hugging Face's metadata."""

import csv

import pyarrow
import pyarrow.parquet
import pytest

from mmrl_core.config import parse
from mmrl_core.data.own import dataset
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.errors import UserError
from tests.core.data.own.own_data import Folder, noted, where

LABELS = ["cat", "cat", "cat", "dog", "dog", "dog"]
NAMES = [f"{number:x}bc0-{label}.png" for number, label in enumerate(LABELS)]


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "mine")
    for name in NAMES:
        folder.add(name)
    return folder


def write(folder, columns, name="list.csv"):
    """A table of columns by name; its path."""
    path = folder.root / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def opened(table, **settings):
    return dataset.open_source("mine", parse(OwnSection, {"table": str(table), **settings}, "params.yaml"))


def labels(source):
    return {item.path: item.class_name for split in ("train", "val", "test") for item in source.items(split)}


def export(folder, images=None, choices=LABELS, cancelled=None, name="project.csv"):
    """What Label Studio writes: columns in alphabetical order, one row an annotation."""
    rows = len(choices)
    columns = {
        "agreement": [""] * rows, "annotation_id": range(rows), "annotator": ["1"] * rows, "choice": choices,
        "created_at": ["2026-01-01T00:00:00Z"] * rows, "id": range(rows),
        "image": images or [f"/data/upload/3/{name}" for name in NAMES], "lead_time": ["1.5"] * rows,
        **({"was_cancelled": cancelled} if cancelled else {}),
    }  # fmt: skip
    return write(folder, columns, name)


WANTED = dict(zip(NAMES, LABELS, strict=True))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("path", "label"), [
    ("path", "label"), ("image", "choice"), ("file_name", "label"), ("FileName", "Class"), ("file", "category"),
])  # fmt: skip
def test_usual_names_of_columns_are_known_in_either_case(folder, kind, path, label):
    table = write(folder, {"id": range(6), path: NAMES, "text": ["a cat, or a dog"] * 6, label: LABELS}, f"list.{kind}")
    assert labels(opened(table)) == WANTED


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_may_be_named_and_then_nothing_else_counts(folder, kind):
    splits = ["train", "train", "test"] * 2
    table = write(
        folder, {"path": ["x"] * 6, "photo": NAMES, "label": ["y"] * 6, "Art": LABELS, "part": splits}, f"list.{kind}"
    )
    source = opened(table, columns={"path": "photo", "label": "Art", "split": "part"}, val_share=0)
    assert labels(source) == WANTED
    assert where(source) == dict(zip(NAMES, splits, strict=True))


def test_columns_that_are_not_named_leave_the_fingerprint_as_it_was(folder):
    table = write(folder, {"path": NAMES, "label": LABELS})
    plain, named = OwnSection(table=str(table)), OwnSection(table=str(table), columns={"path": "path"})
    assert "columns" not in dataset.fingerprint("mine", plain)["spec"]
    assert dataset.fingerprint("mine", plain)["digest"] != dataset.fingerprint("mine", named)["digest"]


@pytest.mark.parametrize(("columns", "message"), [
    ({"image": NAMES, "File": NAMES, "label": LABELS},
     "each of its columns 'image' and 'File' may be the path; say which, such as `columns: {path: image}`"),
    ({"path": NAMES, "label": LABELS, "choice": LABELS},
     "each of its columns 'label' and 'choice' may be the label; say which, such as `columns: {label: label}`"),
    ({"path": NAMES, "split": LABELS, "Split": LABELS, "label": LABELS}, "'split' and 'Split' may be the split"),
    ({"photo": NAMES, "label": LABELS},
     "no column 'path'; its header holds 'photo', 'label'; call one path, image, file_name, filename or file, or say "
     "which it is: `columns: {path: NAME}`"),
    ({"path": NAMES, "species": LABELS}, "call one label, choice, class or category, or say which it is"),
])  # fmt: skip
def test_columns_that_are_not_clear_are_refused_with_the_setting_that_makes_them_so(folder, columns, message):
    with pytest.raises(UserError) as refused:
        opened(write(folder, columns))
    assert message in str(refused.value)


def test_a_named_column_must_be_there_and_belongs_to_a_table(folder):
    table = write(folder, {"photo": NAMES, "label": LABELS})
    with pytest.raises(UserError, match=r"list.csv has no column 'foto'; did you mean 'photo'\?"):
        opened(table, columns={"path": "foto"})
    with pytest.raises(UserError, match="unknown key 'columns.pth'; did you mean 'path'"):
        opened(table, columns={"pth": "photo"})
    with pytest.raises(UserError, match="columns names those of a table"):
        parse(OwnSection, {"images": "x", "columns": {"path": "photo"}}, "params.yaml")


def test_parquet_that_holds_the_images_themselves_is_refused(folder):
    images = [{"bytes": b"x" * 10_000, "path": name} for name in NAMES]
    with pytest.raises(UserError, match="a value of its column 'image' has parts; text is needed"):
        opened(write(folder, {"image": images, "label": LABELS}, "list.parquet"))
    table = write(folder, {"image": [b"\xff" * 10_000] * 6, "label": LABELS}, "list.parquet")
    with pytest.raises(UserError, match=r"row 1: path is b'\\xff.{,40}, not text") as refused:
        opened(table)
    assert len(str(refused.value)) < 6 * 200


@pytest.mark.parametrize("below", ["", "3/", "upload/3/"])
def test_uploads_to_label_studio_are_found_by_name_or_in_their_projects_folder(tmp_path, below):
    folder = Folder(tmp_path / "media")
    for name in NAMES:
        folder.add(f"{below}{name}")
    assert labels(opened(export(folder))) == {f"{below}{name}": label for name, label in WANTED.items()}


def test_an_export_may_lie_elsewhere_than_the_images_of_label_studios_local_storage(folder, tmp_path):
    folder.add("über all/a b.png")
    images = [f"/data/local-files/?d={name}" for name in NAMES] + ["/data/local-files/?d=%C3%BCber%20all/a%20b.png"]
    table = export(Folder(tmp_path / "exports"), images, [*LABELS, '{"choices": ["dog"]}'])
    assert labels(opened(table, images=str(folder.root))) == {**WANTED, "über all/a b.png": "dog"}


def test_annotations_without_a_choice_are_left_out_and_counted(folder):
    choices, images = (
        [*LABELS, "", "[]", "cat"],
        [f"/data/upload/3/{name}" for name in [*NAMES, *NAMES[:2], "gone.png"]],
    )
    source = opened(export(folder, images, choices, cancelled=["False"] * 8 + ["True"]))
    assert labels(source) == WANTED
    note = noted(source, "rows without a choice were left out")
    assert note.endswith("left out: 3, the first " + f"{folder.root}/project.csv, line 8")
    with pytest.raises(UserError, match=r"list.csv, line 2: label is ''"):  # which is no export
        opened(write(folder, {"path": NAMES, "choice": ["", *LABELS[1:]]}))


@pytest.mark.parametrize(("image", "choice", "message"), [
    ("/data/upload/3/gone.png", "cat", "neither as upload/3/gone.png nor as gone.png; copy Label Studio's folder"),
    ("/data/upload/3/../../../secret.png", "cat", "is not below|does not stay inside its folder"),
    ("/data/local-files/?d=../secret.png", "cat", r"the path '../secret.png' does not stay inside its folder"),
    ("/data/local-files/?d=/etc/a.png", "cat", "the path '/etc/a.png' does not stay inside its folder"),
    ("/elsewhere/a.png", "cat", "the path '/elsewhere/a.png' does not stay inside its folder"),
    ("https://host/data/upload/3/a.png", "cat", "https://host/.*a.png is a URL; copy the images here and give paths"),
    ("s3://bucket/a.png", "cat", "s3://bucket/a.png is a URL; copy the images here and give paths below .*mine"),
    (f"/data/upload/3/{NAMES[0]}", '{"choices": ["cat", "dog"]}', "is not one choice; put one class there"),
    (f"/data/upload/3/{NAMES[0]}", '[{"x": 1, "rectanglelabels": ["cat"]}]', "is not one choice"),
    (f"/data/upload/3/{NAMES[0]}", r'{"choices": ["cat\ud800"]}', "is not one choice"),
    (f"/data/upload/3/{NAMES[0]}", '["cat", "dog"]', "is not one choice"),
    (f"/data/upload/3/{NAMES[1]}", "cat", f"names {NAMES[1]} again, after .*line 2; leave one of the two"),
])  # fmt: skip
def test_a_row_of_an_export_that_cannot_be_used_is_named(folder, image, choice, message):
    images = [image, *(f"/data/upload/3/{name}" for name in NAMES[1:])]
    with pytest.raises(UserError, match=r"project.csv, line [23].*(" + message + ")"):
        opened(export(folder, images, [choice, *LABELS[1:]]))


def test_brackets_that_are_no_json_are_a_name(folder):
    choices = ["[cat]" if label == "cat" else "{dog" for label in LABELS]
    assert set(labels(opened(export(folder, choices=choices))).values()) == {"[cat]", "{dog"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_metadata_of_hugging_face_lies_beside_the_images_or_in_each_split(folder, tmp_path, kind):
    columns = {"file_name": NAMES, "label": LABELS, "text": ["a caption"] * 6}
    assert labels(opened(write(folder, columns, f"metadata.{kind}").parent)) == WANTED
    divided, wanted = Folder(tmp_path / "divided"), {}
    for split, chosen in {"train": [0, 1, 3], "validation": [4], "test": [2, 5]}.items():
        for number in chosen:
            divided.add(f"{split}/{NAMES[number]}")
        rows = {name: [values[number] for number in chosen] for name, values in columns.items()}
        write(divided, rows, f"{split}/metadata.{kind}")
        wanted |= {f"{split}/{NAMES[number]}": {"validation": "val"}.get(split, split) for number in chosen}
    source = opened(divided.root)
    assert where(source) == wanted
    assert {path: source.class_names[item.label] for split in ("train", "val", "test") for item in source.items(split)
            for path in [item.path.split("/")[1]]} == WANTED  # fmt: skip
    files = dataset.fingerprint("mine", OwnSection(table=str(divided.root)))["counts"]
    assert files == {"images": 6, "classes": 2, "files": 9}


@pytest.mark.parametrize("above", ["", "data/"])
def test_folders_train_and_test_in_the_paths_are_the_splits_where_no_column_says_otherwise(folder, above):
    splits = ["train", "train", "test"] * 2
    paths = [f"{above}{split}/{name}" for split, name in zip(splits, NAMES, strict=True)]
    for path in paths:
        folder.add(path)
    source = opened(write(folder, {"file_name": paths, "label": LABELS}, "metadata.csv"), val_share=0)
    assert where(source) == dict(zip(paths, splits, strict=True))
    assert noted(source, "the splits are the folders that the paths name: test, train")
    columns = {"file_name": paths, "label": LABELS, "split": splits[::-1]}
    assert where(opened(write(folder, columns), val_share=0)) == dict(zip(paths, splits[::-1], strict=True))
    folder.add(f"{above}more/a.png")
    with pytest.raises(UserError, match=r"list.csv has images in more beside train and test; add a column split"):
        opened(write(folder, {"path": [*paths, f"{above}more/a.png"], "label": [*LABELS, "cat"]}))


@pytest.mark.parametrize(("files", "settings", "message"), [
    ({}, {}, "the folder .*mine holds no metadata.csv or metadata.parquet, itself or in train, val and test"),
    ({"metadata.csv": "a.png"}, {"images": "x"}, "has its tables beside their images; leave `images` out"),
    ({"metadata.csv": NAMES[0], "metadata.parquet": NAMES[0]}, {}, f"parquet, row 1 names {NAMES[0]} again, after"),
    ({"train/metadata.csv": f"../{NAMES[0]}"}, {}, r"train/metadata.csv, line 2: the path '../.*does not stay inside"),
])  # fmt: skip
def test_a_folder_that_is_no_imagefolder_is_refused(folder, files, settings, message):
    for name, path in files.items():
        write(folder, {"file_name": [path], "label": ["cat"]}, name)
    with pytest.raises(UserError, match=message):
        opened(folder.root, **settings)


def test_a_split_that_contradicts_its_folder_is_refused(folder):
    folder.add("train/a.png")
    write(folder, {"file_name": ["a.png"], "label": ["cat"], "split": ["test"]}, "train/metadata.csv")
    with pytest.raises(UserError, match="line 2: split is 'test' in the folder train; correct the row or move it"):
        opened(folder.root)


def test_every_row_that_cannot_be_used_is_named_at_once(folder):
    table = write(folder, {"path": [NAMES[0], "gone.png", NAMES[1], "lost.png"], "label": ["cat", "cat", "dog", "dog"]})
    with pytest.raises(UserError, match=r"^2 rows: .*gone\.png.*; .*lost\.png"):
        opened(table)


def test_paths_from_the_top_are_taken_where_they_lie_in_the_folder(folder, tmp_path):
    paths = [str(folder.root / name) for name in NAMES]
    assert set(labels(opened(write(folder, {"path": paths, "label": LABELS})))) == set(NAMES)
    with pytest.raises(UserError, match="elsewhere.png' does not stay inside its folder"):
        opened(write(folder, {"path": [str(tmp_path / "elsewhere.png"), *paths[1:]], "label": LABELS}))


def test_a_column_of_splits_that_is_not_read_is_noted(folder):
    splits = ["train", "test", "train"] * 2
    table = write(folder, {"path": NAMES, "label": LABELS, "subset": splits})
    assert "say `columns: {split: subset}`" in noted(opened(table), "is not read")
    assert len(opened(table, columns={"split": "subset"}).test) == 2
    assert not noted(opened(write(folder, {"path": NAMES, "label": LABELS, "subset": list("abcabc")})), "is not read")
