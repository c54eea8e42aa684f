"""Folders as phones, Kaggle, Label Studio and Google leave them: read, or refused in one line that says what to do."""

import json

import pytest
from PIL import ExifTags, Image

from mmrl_core.data.images import decode
from mmrl_core.data.own.beside import section_of
from mmrl_core.data.own.dataset import open_source
from mmrl_core.data.own.settings import ColumnsSection, OwnSection
from mmrl_core.errors import UserError
from tests.core.data.odd_images import encoded, oriented, png
from tests.core.data.own.own_data import Folder, noted, where


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "given")


def opened(folder, **settings):
    """The folder as `section_of` describes it."""
    return open_source("mine", section_of(folder.root).model_copy(update=settings))


def refused(folder, message):
    with pytest.raises(UserError, match=message) as error:
        opened(folder)
    assert "\n" not in str(error.value)


def heic(number: int) -> bytes:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded(Image.new("RGB", (64, 32), (9 * number, 0, 0)), "HEIF", exif=exif.tobytes())


def iphone(folder, photograph=heic):
    """Photographs, the films and edits beside some of them, and what Finder leaves."""
    for place, name in enumerate(("mug", "plant")):
        for number in range(4):
            folder.add(f"{name}/IMG_{number:04}.HEIC", photograph(4 * place + number)).add(
                f"{name}/IMG_{number:04}.MOV", b"film"
            )
        folder.add(f"{name}/IMG_0000.AAE", b"<plist/>").add(f"{name}/IMG_E0000.JPG", oriented("JPEG", 6))
        folder.add(f"{name}/IMG_0009.JPG").add(f"{name}/.DS_Store", b"x").add(f"{name}/._IMG_0000.HEIC", b"x")
    return folder


def test_an_iphones_photographs_are_read_upright_and_what_lies_beside_them_is_noted(folder):
    source = opened(iphone(folder))
    assert len(where(source)) == 12
    assert noted(source, "10 files that are no images were left out, the first mug/IMG_0000.AAE")
    assert noted(
        source, "another edited or in another format, by their names: 2, the first mug/IMG_E0000.JPG of mug/IMG_0"
    )
    photograph = next(item for item in source.train if item.path.endswith(".HEIC"))
    assert decode(source.read(photograph), photograph.path).size == (32, 64)


@pytest.mark.usefixtures("without_heif")
def test_without_the_package_for_heic_the_others_are_used_and_the_extra_is_named(folder):
    source = opened(iphone(folder, lambda number: b"\0\0\0\x18ftypheic%d" % number))
    assert len(where(source)) == 4
    note = "8 files in the format HEIC were left out, the first mug/IMG_0000.HEIC; to use it, convert it to JPEG, or "
    assert noted(source, f"{note}`pip install 'mmrl-ops[heif]'`")


def test_a_cameras_own_folders_are_no_classes(folder):
    folder.fill("DCIM/100APPLE", 3).fill("DCIM/101APPLE", 2)
    refused(
        folder, "given: 100APPLE, 101APPLE: such folders are a camera's, not of classes; sort the images into a folder"
    )


def test_a_kaggle_folder_is_read_by_its_table_of_ids_without_extensions(folder):
    rows = [f"{number:04x},{('cat', 'dog')[number % 2]}" for number in range(10)]
    for row in rows:
        folder.add(f"train/{row[:4]}.jpg")
    folder.fill("test", 3).add("archive.zip", b"PK").add("train.csv", "\n".join(["id,label", *rows]).encode())
    folder.add("sample_submission.csv", b"id,label\n000,cat\n001,dog\n")
    said = section_of(folder.root)
    assert said == OwnSection(table=str(folder.root / "train.csv"), images=str(folder.root / "train"),
                              columns=ColumnsSection(path="id"))  # fmt: skip
    source = opened(folder)
    assert source.class_names == ["cat", "dog"] and set(where(source)) == {f"{row[:4]}.jpg" for row in rows}


def test_class_folders_count_for_more_than_a_table_beside_them(folder):
    folder.fill("train/cat", 3).fill("train/dog", 3).fill("test/cat", 2).fill("test/dog", 2)
    folder.add("train.csv", b"path,label\ntrain/cat/000.png,a\ntrain/dog/000.png,b\n")
    assert section_of(folder.root) == OwnSection(images=str(folder.root))
    assert opened(folder).class_names == ["cat", "dog"]


def test_splits_that_are_packed_twice_are_read_past_an_archive(folder):
    folder.fill("train/train/cat", 3).fill("train/train/dog", 3).fill("test/test/cat", 2).fill("test/test/dog", 2)
    folder.add("archive.zip", b"PK")
    assert where(opened(folder))["test/test/cat/000.png"] == "test"


def test_a_test_folder_without_labels_is_left_to_predict(folder):
    folder.fill("train/cat", 3).fill("train/dog", 3).fill("test", 4)
    refused(
        folder, "the 4 images in test lie in no class folders, .*; give .*/given/train alone, and let `mmrl predict`"
    )


def test_classes_that_only_file_names_tell_are_asked_for(folder):
    folder.add("train/cat.0.jpg").add("train/dog.0.jpg").add("test/1.jpg")
    refused(
        folder, "none of its 3 images lies in a class folder, the first test/1.jpg; make a folder for each class, or"
    )


def test_an_id_that_two_images_have_is_refused(folder):
    folder.add("a.jpg").add("a.png").add("b.jpg").add("t.csv", b"path,label\na,x\nb,y\n")
    with pytest.raises(UserError, match="t.csv, line 2: cannot find .*/given/a "):
        open_source("mine", OwnSection(table=str(folder.root / "t.csv")))


def tasks(folder):
    """The JSON of a Label Studio project with ten choices, one task that was cancelled and one without a choice."""
    exported = []
    for number in range(12):
        folder.add(f"media/upload/1/f{number}-img.png")
        chosen = {"type": "choices", "from_name": "choice", "value": {"choices": [("cup", "fork")[number % 2]]}}
        annotation = {"id": number, "was_cancelled": number == 10, "result": [] if number == 11 else [chosen]}
        image = f"/data/upload/1/f{number}-img.png"
        exported.append({"id": number, "data": {"image": image}, "annotations": [annotation], "meta": {}})
    return exported


def test_a_label_studio_export_is_found_beside_its_media_and_read_as_json(folder):
    folder.add("project.json", json.dumps(tasks(folder)).encode())
    assert section_of(folder.root) == OwnSection(table=str(folder.root / "project.json"),
                                                 images=str(folder.root / "media/upload"))  # fmt: skip
    source = opened(folder)
    assert source.class_names == ["cup", "fork"] and len(where(source)) == 10
    assert noted(source, "rows without a choice were left out: 2, the first")


def test_json_min_is_read_the_same(folder):
    rows = [
        {
            "image": task["data"]["image"],
            "id": task["id"],
            "annotation_id": 1,
            "choice": ("cup", "fork")[task["id"] % 2],
        }
        for task in tasks(folder)
    ]
    folder.add("mini.json", json.dumps(rows).encode())
    assert len(where(opened(folder))) == 12


@pytest.mark.parametrize(("content", "message"), [
    ({"image": "a.png"}, "labels.json is no list of objects; give a JSON export of Label Studio, or a CSV"),
    ([], "labels.json has no rows"),
    ([{"image": "a.png", "choice": {"choices": ["x", "y"]}}], "row 1: .* is not one choice; put one class there"),
    ([{"image": "a.png", "choice": "x"}, {"image": "a.png", "choice": "y"}], "row 2 names a.png again, after"),
    ([{"data": {"image": "a.png"}, "annotations": [{"id": 1, "result": [{"type": "rectanglelabels"}]}]}],
     "has no column 'label'"),
])  # fmt: skip
def test_json_that_cannot_be_used_is_refused_in_one_line(folder, content, message):
    folder.add("a.png").add("labels.json", json.dumps(content).encode())
    with pytest.raises(UserError, match=message):
        open_source("mine", OwnSection(table=str(folder.root / "labels.json")))


def test_a_roboflow_folder_has_its_three_splits(folder):
    for split, number in (("train", 4), ("valid", 2), ("test", 2)):
        folder.fill(f"{split}/cup", number).fill(f"{split}/fork", number)
    folder.add("README.roboflow.txt", b"x")
    source = opened(folder)
    assert [len(source.train), len(source.val), len(source.test)] == [8, 4, 4]


def test_google_takeouts_albums_are_classes_and_its_edits_are_noted(folder):
    for album in ("Beach", "Hills"):
        folder.fill(f"Takeout/Google Photos/{album}", 4).add(f"Takeout/Google Photos/{album}/000-edited.png", png(90))
        folder.add(f"Takeout/Google Photos/{album}/000.png.supplemental-metadata.json", b"{}")
    source = opened(folder.add("Takeout/archive_browser.html", b"x"))
    assert source.class_names == ["Beach", "Hills"]
    assert noted(source, "by their names: 2, the first Takeout/Google Photos/Beach/000-edited.png of Takeout/")
