"""Who of one's own data trains, validates and tests, drawn here or named by folders; equal images."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl_core.data.own.splits import draw
from mmrl_core.errors import UserError
from tests.core.data.odd_images import png
from tests.core.data.own.own_data import Folder, counts, noted, where


def test_the_split_hangs_on_the_seed_and_on_nothing_of_the_file_system(own_pets, tmp_path):
    first = where(own_pets.open())
    assert where(own_pets.open()) == first != where(own_pets.open(split_seed=1))
    other = Folder(tmp_path / "copy")
    for path in sorted(first, reverse=True):
        other.add(path, (own_pets.root / path).read_bytes())
    assert where(other.open()) == first


def test_a_new_class_leaves_the_split_of_the_others_as_it_was(own_pets):
    first = where(own_pets.open())
    own_pets.fill("axolotl", 7).fill("zebra", 4)
    assert first.items() <= where(own_pets.open()).items()


def test_a_renamed_file_stays_in_its_split(own_pets):
    first = where(own_pets.open())
    (own_pets.root / "cat/003.png").rename(own_pets.root / "cat/zz.png")
    assert where(own_pets.open())["cat/zz.png"] == first["cat/003.png"]


@pytest.mark.parametrize(("number", "expected"), [
    (1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (5, (2, 1, 2)), (20, (10, 4, 6)),
])  # fmt: skip
def test_every_class_keeps_an_image_to_train_on_and_one_to_test_on(folder, number, expected):
    assert counts(folder.fill("cat", number).fill("dog", 5).open(), 0) == expected


@pytest.mark.parametrize(
    ("val", "test", "expected"), [(0, 0.01, (9, 0, 1)), (0.5, 0.49, (1, 4, 5)), (0, 0.99, (1, 0, 9))]
)
def test_shares_leave_a_class_something_to_train_and_test_on(own_pets, val, test, expected):
    assert counts(own_pets.open(val_share=val, test_share=test), 1) == expected


def test_identical_images_never_part_ways(folder):
    for number in range(12):
        for copy in range(3):
            folder.add(f"cat/{number}_{copy}.png", png(number))
    source = folder.fill("dog", 5).open()
    splits = where(source)
    assert all(len({splits[f"cat/{number}_{copy}.png"] for copy in range(3)}) == 1 for number in range(12))
    assert counts(source, 0) == (18, 6, 12)
    assert noted(source, "repeat another of their class") == (
        "images that repeat another of their class: 24, the first cat/0_0.png and cat/0_1.png"
    )


def test_an_image_under_two_labels_trains_both_and_is_noted(own_pets):
    for number in range(1, 11):
        (own_pets.root / f"dog/{number:03d}.png").write_bytes(png(number))  # all of the cats
    source = own_pets.open()
    splits = where(source)
    assert {split for path, split in splits.items() if path.startswith("cat")} == {"train"}
    assert {splits[f"dog/{number:03d}.png"] for number in range(1, 11)} == {"train"}
    assert noted(source, "two classes").endswith("10, the first cat/000.png and dog/001.png")
    assert noted(source, "no test image") == "classes with no test image: 1 of 3 (cat)"
    assert noted(source, "too:") is None


def test_classes_short_of_images_are_noted(folder):
    source = folder.fill("cat", 4).fill("newt", 1).open()
    assert noted(source, "a single image") == "classes with a single image: 1 of 2 (newt)"
    assert noted(source, "no test image") == "classes with no test image: 1 of 2 (newt)"


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_are_splits_and_their_subfolders_classes(folder, val):
    for split in ("Train", "test", val):
        folder.fill(f"{split}/cat", 2).fill(f"{split}/dog", 1)
    source = folder.open()
    assert source.class_names == ["cat", "dog"]
    assert Counter(where(source).values()) == {"train": 3, "val": 3, "test": 3}
    assert where(source)[f"{val}/cat/000.png"] == "val"


def test_val_is_drawn_from_train_where_only_test_is_given(folder):
    folder.fill("train/cat", 10).fill("train/dog", 1).fill("test/cat", 4).fill("test/dog", 4)
    source = folder.open()
    assert (counts(source, 0), counts(source, 1)) == ((8, 2, 4), (1, 0, 4))
    assert all(path.startswith("test") == (split == "test") for path, split in where(source).items())


@pytest.mark.parametrize("val", ["val", "dev"])
def test_val_is_the_test_split_where_there_is_no_other_and_that_is_noted(folder, val):
    folder.fill("train/cat", 10).fill("train/dog", 10).fill(f"{val}/cat", 4).fill(f"{val}/dog", 4)
    source = folder.open()
    assert [counts(source, label) for label in (0, 1)] == [(8, 2, 4)] * 2
    assert {path for path, split in where(source).items() if split == "test"} == {
        f"{val}/{name}/{number:03d}.png" for name in ("cat", "dog") for number in range(4)
    }
    assert source.notes == [
        "there is no test split: the images of val are the test images, and those of val are drawn from train"
    ]


@pytest.mark.parametrize(("folders", "message"), [
    (["train"], "no test split"), (["val", "test"], "no train split"),
    (["train", "test", "extra"], "holds extra beside train and test"),
    (["train", "test", "val", "valid"], "name one split"),
])  # fmt: skip
def test_split_folders_that_are_no_full_set_are_refused(folder, folders, message):
    for name in folders:
        folder.fill(f"{name}/cat", 2).fill(f"{name}/dog", 2)
    with pytest.raises(UserError, match=message):
        folder.open()


def test_train_alone_among_other_folders_is_a_class(folder):
    assert folder.fill("train", 3).fill("bus", 3).open().class_names == ["bus", "train"]


def test_identical_images_across_given_splits_are_noted_and_stay(folder):
    folder.fill("train/cat", 4).fill("train/dog", 4).fill("val/cat", 2).fill("val/dog", 2).fill("test/dog", 3)
    folder.add("test/cat/copy.png", png(2)).add("test/cat/other.png", png(9))
    source = folder.open()
    assert where(source)["test/cat/copy.png"] == "test"
    assert noted(source, "test that are in train") == (
        "images of test that are in train too: 1, the first test/cat/copy.png and train/cat/001.png"
    )
    assert noted(source, "test that are in val").endswith("1, the first test/cat/other.png and val/cat/000.png")


IMAGES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12).map(lambda number: bytes([number]))))


@given(IMAGES, st.floats(0, 0.5), st.floats(0.01, 0.49), st.integers(0, 5))
def test_whatever_the_images_none_parts_ways_and_no_class_is_left_without_training(contents, val, test, seed):
    splits = draw(contents, {"test": test, "val": val}, seed)
    drawn = dict(zip(contents, splits, strict=True))
    assert [drawn[content] for content in contents] == splits
    assert len({(sha256, split) for (_, sha256), split in drawn.items()}) == len({sha256 for _, sha256 in contents})
    labels_of = {digest: {label for label, sha256 in contents if sha256 == digest} for _, digest in contents}
    for label in {label for label, _ in contents}:
        mine = {sha256: split for (its, sha256), split in drawn.items() if its == label}
        assert "train" in mine.values()
        testable = [sha256 for sha256 in mine if labels_of[sha256] == {label}]
        assert "test" in mine.values() or len(mine) == 1 or not testable
