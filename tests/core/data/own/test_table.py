"""A table that names the images."""

import csv

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from mmrl_core.data.own import dataset
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.errors import UserError
from tests.core.data.odd_images import png
from tests.core.data.own.own_data import Folder, counts, noted, where

ROWS = [{"path": f"img/{label} {index}.PNG", "label": label} for label in ("dog", "cat") for index in range(4)]
SPLIT = ["train", "train", "val", "test"] * 2


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "mine")
    for row in ROWS:
        folder.add(row["path"])
    return folder


def split_rows(names=SPLIT):
    return [{**row, "split": name} for row, name in zip(ROWS, names, strict=True)]


def write(folder, rows, kind="csv"):
    path = folder.root / f"table.{kind}"
    if kind == "parquet":
        pandas.DataFrame(rows).to_parquet(path)
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def opened(path, **settings):
    return dataset.open_source("mine", OwnSection(table=str(path), **settings))


def refused(folder, change, message):
    rows = [dict(row) for row in split_rows()]
    rows[1] |= change
    with pytest.raises(UserError, match=message):
        opened(write(folder, rows))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_names_paths_labels_and_splits(folder, kind):
    rows = [{"id": 1, **row, "size": "big, or so"} for row in split_rows()]
    source = opened(write(folder, rows, kind))
    assert (source.class_names, [counts(source, label) for label in (0, 1)]) == (["cat", "dog"], [(2, 1, 1)] * 2)
    assert where(source) == {row["path"]: row["split"] for row in rows}
    assert all(source.read(item) == (folder.root / item.path).read_bytes() for item in source.train)


def test_a_table_without_splits_is_divided_as_a_folder_is(folder):
    source = opened(write(folder, ROWS))
    assert [counts(source, label) for label in (0, 1)] == [(2, 1, 1)] * 2
    folders = Folder(folder.root.parent / "folders")
    for row in ROWS:
        folders.add(f"{row['label']}/{row['path'][4:]}", (folder.root / row["path"]).read_bytes())
    assert {path.split("/")[1]: split for path, split in where(folders.open()).items()} == {
        path.split("/")[1]: split for path, split in where(source).items()
    }
    assert where(opened(write(folder, list(reversed(ROWS))))) == where(source)
    assert where(opened(write(folder, split_rows([""] * 8)))) == where(source)


def test_paths_may_start_at_another_folder(folder, tmp_path):
    rows = [{**row, "path": row["path"].removeprefix("img/")} for row in ROWS]
    table = write(Folder(tmp_path / "tables"), rows)
    assert len(where(opened(table, images=str(folder.root / "img")))) == 8
    with pytest.raises(UserError, match=r"line 2: cannot find .*tables/dog 0.PNG"):
        opened(table)
    with pytest.raises(UserError, match="nowhere is not there"):
        opened(table, images=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_may_be_whole_numbers_and_lie_by_value(folder, kind, tmp_path):
    rows = [{**row, "label": {"dog": 9, "cat": 10}[row["label"]]} for row in ROWS]
    source = opened(write(folder, rows, kind))
    assert source.class_names == ["9", "10"] and noted(source, "class names are numbers")
    (tmp_path / "classes.csv").write_text("class,name\n10,cat\n9,dog\n")
    source = opened(write(folder, rows, kind), classes=str(tmp_path / "classes.csv"), base_classes=["dog"])
    assert (source.class_names, source.base, source.notes) == (["dog", "cat"], [0], [])


def test_parquet_may_hold_categories_and_whole_numbers_as_floats(folder):
    path = folder.root / "table.parquet"
    frame = pandas.DataFrame(split_rows())
    frame.astype({"label": "category", "split": "category"}).to_parquet(path)
    assert opened(path).class_names == ["cat", "dog"]
    frame.assign(label=[1.0] * 4 + [0.0] * 4).to_parquet(path)
    assert opened(path).class_names == ["0", "1"]


def test_a_table_as_excel_saves_it_can_be_read(folder):
    path = write(folder, split_rows())
    path.write_bytes(
        b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").replace(b"train", b" Train ") + b"\r\n"
    )
    assert counts(opened(path), 0) == (2, 1, 1)


def test_val_is_drawn_from_train_where_the_table_names_none(folder):
    source = opened(write(folder, split_rows(["train", "train", "train", "test"] * 2)), val_share=0.34)
    assert [counts(source, label) for label in (0, 1)] == [(2, 1, 1)] * 2
    with pytest.raises(UserError, match=r"table.csv names splits but no test split; add one, or name no splits"):
        opened(write(folder, split_rows(["train"] * 8)))
    source = opened(write(folder, split_rows(["Training", "train", "dev", "val"] * 2)), val_share=0.34)
    assert [counts(source, label) for label in (0, 1)] == [(1, 1, 2)] * 2 and noted(source, "there is no test split")


def test_a_table_that_leaves_out_the_splits_its_paths_name_is_noted(folder):
    rows = [{**row, "path": row["path"].replace("img/", f"{row['label']}/{name}/")}
            for row in ROWS for name in ("Training", "test")]  # fmt: skip
    for number, row in enumerate(rows):
        folder.add(row["path"], png(100 + number))
    source = opened(write(folder, rows))
    assert noted(source, "no split") == "paths lie in folders Training, test, but no split is named: one was drawn"


def test_identical_images_across_splits_are_noted(folder):
    (folder.root / ROWS[3]["path"]).write_bytes((folder.root / ROWS[0]["path"]).read_bytes())
    note = noted(opened(write(folder, split_rows())), "test that are in train too")
    assert note.endswith("1, the first img/dog 0.PNG and img/dog 3.PNG")


@pytest.mark.parametrize(("change", "message"), [
    ({"path": "/etc/passwd.png"}, "line 3: the path '/etc/passwd.png' does not stay inside"),
    ({"path": "img/../../x.png"}, "line 3: the path 'img/../../x.png' does not stay inside"),
    ({"path": "img/none.png"}, "line 3: cannot find .*none.png"), ({"path": "img"}, "line 3: img is no regular file"),
    ({"path": "table.csv"}, "line 3: table.csv is no image by its extension"),
    ({"path": "img//dog 0.PNG"}, "line 3 names img/dog 0.PNG again, after .*line 2"),
    ({"path": ""}, "line 3: path is ''"), ({"label": " "}, "line 3: label is ' '"),
    ({"split": "tests"}, "line 3: split is 'tests'; did you mean 'test'"), ({"split": ""}, "line 3: split is ''"),
])  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(folder, change, message):
    refused(folder, change, message)


@pytest.mark.usefixtures("without_heif")
def test_a_row_of_a_format_that_is_not_read_says_what_to_make_of_it(folder):
    folder.add("img/a.heic", b"")
    refused(folder, {"path": "img/a.heic"}, "line 3: img/a.heic is in the format HEIC, .*; convert it to JPEG")


def test_a_link_out_of_the_folder_is_refused_wherever_it_hides(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").write_bytes(png(77))
    (folder.root / "img/link").symlink_to(tmp_path / "elsewhere")
    refused(folder, {"path": "img/link/a.png"}, "line 3: img/link/a.png is a link out of")


@pytest.mark.parametrize("label", [None, 1.5, float("nan"), True, b"cat"])
def test_a_parquet_label_that_is_neither_text_nor_a_whole_number_is_refused(folder, label):
    path = folder.root / "table.parquet"
    labels = [label] * 8 if label is not None else ["a"] * 7 + [None]
    columns = {"path": [row["path"] for row in ROWS], "label": labels}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(UserError, match=r"table.parquet, row [18]: label is"):
        opened(path)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "no column 'path'; .*holds nothing"), (b"id,label\na,b\n", "no column 'path'; .*'id', 'label'"),
    (b"path;label\na;b\n", "has its columns apart by ';'; save it with commas"), (b"path,label\n", "has no rows"),
    (b"path,path,label\na,b,c\n", "more than one column 'path'"),
    (b"path,label\na.png,cats, big\n", "line 2 has 3 columns, the header 2"),
    (b"path,label\na.png\n", "line 2 has 1 columns"),
    (b"path,label\na.png,\xe9t\xe9\n", "save it again, a CSV as UTF-8"),
    (b'path,label\na.png,"cat\n', "cannot read the table"),
])  # fmt: skip
def test_a_csv_that_cannot_be_read_is_refused(folder, content, message):
    (folder.root / "table.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        opened(folder.root / "table.csv")


def test_a_damaged_missing_or_foreign_table_is_refused(folder):
    path = write(folder, ROWS, "parquet")
    for content in (path.read_bytes()[:-20], b"", b"PAR1" * 9):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read the table .*table.parquet"):
            opened(path)
    with pytest.raises(UserError, match=r"none.csv is not there"):
        opened(folder.root / "none.csv")
    with pytest.raises(UserError, match=r"table.xlsx is no table that can be read; give one of .csv, .parquet"):
        opened(folder.root / "table.xlsx")


def test_the_fingerprint_changes_with_the_table_and_with_an_image_it_names(folder):
    path = write(folder, ROWS)
    folder.add("img/unnamed.png")
    digests = [dataset.fingerprint("mine", OwnSection(table=str(path)))["digest"] for _ in range(2)]
    for change in (lambda: folder.add(ROWS[0]["path"]), lambda: write(folder, split_rows())):
        change()
        digests.append(dataset.fingerprint("mine", OwnSection(table=str(path)))["digest"])
    assert len(set(digests)) == 3
    folder.add("img/unnamed.png")
    assert dataset.fingerprint("mine", OwnSection(table=str(path)))["digest"] == digests[-1]
