"""How the folders above images are read: what is a split, what a class, what only holds the others."""

import pytest

from mmrl_core.data.own.records import is_split
from mmrl_core.errors import UserError
from tests.core.data.own.own_data import noted, where

CLASSES = ("birch", "oak", "pine")
IMAGES = {"train": 4, "val": 2, "test": 3}


def fill(folder, pattern: str, names: dict[str, str], classes=CLASSES):
    """Images of every class in the folders of the splits, whose names are given by split."""
    for split, name in names.items():
        for class_name in classes:
            folder.fill(pattern.format(split=name, name=class_name), IMAGES[split])
    return folder


def check_read(folder, names: dict[str, str]):
    """The source, whose images all are of the split that their path names."""
    source = folder.open()
    assert source.class_names == list(CLASSES)
    for path, split in where(source).items():
        named = next(split for split, name in names.items() if name in path.split("/"))
        assert split == named or (split, named, "val" in names) == ("val", "train", False)
    return source


@pytest.mark.parametrize("names", [
    {"train": "Training", "test": "Testing"}, {"train": "Training", "test": "Test"},
    {"train": "TRAIN", "val": "Valid", "test": "TEST"}, {"train": "seg_train", "test": "seg_test"},
    {"train": "train_images", "val": "val_images", "test": "test_images"},
    {"train": "trainImages", "test": "testImages"},
    {"train": "train2017", "val": "val2017", "test": "test2015"}, {"train": "training_set", "test": "test_set"},
    {"train": "trainset", "test": "testset"}, {"train": "trainval", "test": "test"},
    {"train": "train", "val": "dev", "test": "evaluation"},
    {"train": "1 train", "val": "2 validation", "test": "3 test"},
])  # fmt: skip
@pytest.mark.parametrize("pattern", ["{split}/{name}", "{name}/{split}"])
def test_folders_that_name_splits_in_the_usual_words_are_splits_above_classes_or_below(folder, pattern, names):
    source = check_read(fill(folder, pattern, names), names)
    others = [] if all(map(is_split, names.values())) else ["folders of splits"]
    assert [note.partition(":")[0] for note in source.notes] == others
    assert {split: len(source.items(split)) for split in names if split != "train"} == {
        split: 3 * IMAGES[split] for split in names if split != "train"
    }


def test_splits_named_in_different_words_are_splits_where_they_hold_the_same_classes(folder):
    names = {"train": "train", "test": "test_images"}
    check_read(fill(folder, "{split}/{name}", names), names)


@pytest.mark.parametrize("pattern", [
    "dataset/{split}/{name}", "a/b/c/{split}/{name}", "images/{split}/{name}", "{split}/images/{name}",
    "{split}/{split}/{name}", "train_test_split/{split}/{name}", "data/{name}/{split}", "{split}/{name}/images/more",
])  # fmt: skip
def test_folders_that_only_hold_the_others_are_no_classes(folder, pattern):
    names = {"train": "seg_train", "test": "seg_test"}
    (folder.root / "README.md").write_text("of trees")
    source = check_read(fill(folder, pattern, names), names)
    assert source.notes == [
        "1 files that are no images were left out, the first README.md",
        "folders of splits: seg_test is test, seg_train is train",
    ]


def test_classes_without_splits_may_lie_in_folders_that_hold_nothing_else(folder):
    for name in CLASSES:
        folder.fill(f"Dataset/pictures/{name}", 4)
    (folder.root / "annotations").mkdir()
    (folder.root / "annotations/all.xml").write_text("")
    source = folder.open()
    assert source.class_names == list(CLASSES)
    assert source.notes == [
        "1 files that are no images were left out, the first annotations/all.xml",
        "1 folders without an image were left out: annotations",
    ]


@pytest.mark.parametrize("classes", [
    ("sandals", "test kits", "training shoes"), ("test kits", "training shoes"), ("test kits", "training kits"),
    ("bus", "car", "train"), ("Training", "drills"), ("crash test", "dummy", "evaluation form"),
])  # fmt: skip
def test_classes_whose_names_hold_such_a_word_stay_classes(folder, classes):
    for name in classes:
        folder.fill(name, 4)
    source = folder.open()
    assert (source.class_names, source.notes) == (sorted(classes), [])


def test_a_class_with_folders_in_it_that_is_named_as_a_split_is_noted(folder):
    folder.fill("train/front", 3).fill("train/side", 3).fill("bus", 3)
    source = folder.open()
    assert source.class_names == ["bus", "train"]
    assert source.notes == [
        "folders below those of classes make no classes of their own: front, side",
        "the folder train is a class, as no other split is named",
    ]


@pytest.mark.parametrize("pattern", ["{fold}/{name}", "animals {fold}/more/{name}"])
def test_folders_that_are_not_read_as_classes_are_noted(folder, pattern):
    for fold in ("fold1", "fold2"):
        for name in CLASSES:
            folder.fill(pattern.format(fold=fold, name=name), 4)
    assert len(folder.open().class_names) == 2
    assert noted(folder.open(), "of their own").startswith(
        "folders below those of classes make no classes of their own"
    )


def test_folders_that_name_a_split_and_a_class_at_once_are_refused(folder):
    for name in ("train_cat", "test_cat", "train_dog", "test_dog"):
        folder.fill(name, 3)
    with pytest.raises(UserError, match="test_cat, train_cat name a split and a class at once; put the images into"):
        folder.open()


@pytest.mark.parametrize(("folders", "message"), [
    (["train/a", "train/b", "validation/a", "validation/b", "holdout/a", "holdout/b"],
     "holds holdout beside train and validation; leave only folders of splits there"),
    (["seg_train/a", "seg_train/b", "seg_test/a", "seg_test/b", "seg_pred"], "holds seg_pred beside seg_train and"),
    (["train/a", "train/b", "test/a", "val/a", "validation/a"], "name one split; leave one of them"),
    (["Training/a", "train/a", "test/a"], "two of the folders Training, test, train name one split"),
    (["Training/a", "Training/b", "Holdout/a", "Holdout/b"],
     r"Holdout, Training hold the same folders \(a, b\), and Training names a split"),
    (["Training/a", "Training/b"], "holds Training alone and no test split; add it, or give that folder as `images`"),
    (["a/train", "a/test", "b"], "a holds test, train, which name splits, where other folders hold none"),
    (["data/train/a", "data/test/a", "samples"], "data holds test, train, which name splits"),
    (["train", "test"], "none of its 12 images lies in a class folder, the first test/000.png; make a folder"),
    (["seg_train/seg_train", "seg_test/seg_test"], "none of its 12 images lies in .*, the first seg_test/seg_test/0"),
])  # fmt: skip
def test_folders_that_may_be_read_in_more_than_one_way_are_refused(folder, folders, message):
    for name in folders:
        folder.fill(name, 6)
    with pytest.raises(UserError, match=message):
        folder.open()


def test_every_file_that_is_in_the_way_is_named_at_once(own_pets):
    for name in ("cat/a.png", "dog/b.png"):
        (own_pets.root / name).symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"^2 files: .*cat/a.png .*; .*dog/b.png") as refused:
        own_pets.open()
    assert len(refused.value.problems) == 2


def test_a_class_that_one_split_lacks_is_no_empty_folder(folder):
    names = {"train": "train", "test": "test"}
    fill(folder, "{split}/{name}", names)
    (folder.root / "test/oak").rename(folder.root / "spare")
    (folder.root / "test/oak").mkdir()
    (folder.root / "spare").rename(folder.root.parent / "spare")
    (folder.root / "val").mkdir()
    source = folder.open()
    assert noted(source, "no test image") == "classes with no test image: 1 of 3 (oak)"
    assert noted(source, "without an image") == "1 folders without an image were left out: val"
