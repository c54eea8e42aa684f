"""What `check` says of split files and of real photographs; benchmark/ has ImageNet's kind and Aircraft."""

import os

import pytest
from PIL import Image

from mmrl_core.data import check as checking
from mmrl_core.data.check import check, check_own
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.errors import UserError
from mmrl_core.protocols import ON_TARGET, PROTOCOLS
from tests.core.data.odd_images import encoded, png
from tests.support.photographs import needs_photographs

COUNTS = {"train": 15, "val": 9, "test": 6}


@needs_photographs
def test_caltech101_is_complete():
    (row,) = check(os.environ["MMRL_TEST_DATA"], ["caltech101"])
    assert (row["state"], row["missing"], row["problems"]) == ("complete", 0, [])
    assert row["found"] == row["expected"] == {"train": 4128, "val": 1649, "test": 2465}


def test_a_dataset_with_all_it_names_and_the_published_counts_is_complete(pets, monkeypatch):
    monkeypatch.setitem(checking.PUBLISHED, "oxford_pets", tuple(COUNTS.values()))
    (row,) = check(pets.root, ["oxford_pets"])
    assert (row["state"], row["found"], row["problems"]) == ("complete", COUNTS, [])


def test_missing_images_are_counted_and_make_it_incomplete(pets, monkeypatch):
    monkeypatch.setitem(checking.PUBLISHED, "oxford_pets", tuple(COUNTS.values()))
    for split in ("train", "test"):
        (pets.images / pets.splits[split][0][0]).unlink()
    (row,) = check(pets.root, ["oxford_pets"])
    assert (row["state"], row["missing"]) == ("incomplete", 2)
    assert row["found"] == {"train": 14, "val": 9, "test": 5}
    assert row["problems"][0].endswith("the first is cat/train_0.JPG") and len(row["problems"]) == 3


def test_one_broken_dataset_is_a_row_beside_the_others(pets):
    pets.split_path.write_text("{")
    rows = {row["dataset"]: row for row in check(pets.root, ["oxford_pets", "dtd"])}
    assert [rows[key]["state"] for key in ("oxford_pets", "dtd")] == ["incomplete", "absent"]
    assert "is not valid JSON" in rows["oxford_pets"]["problems"][0]


def test_an_unknown_key_is_refused_and_an_alias_taken(tmp_path):
    with pytest.raises(UserError, match="unknown dataset 'cifar'"):
        check(tmp_path, ["cifar"])
    assert check(tmp_path, ["describable_textures"])[0]["dataset"] == "dtd"


def checked(folder, protocol=PROTOCOLS["few-shot"], shots=1, **settings):
    spec = {"pets": OwnSection(images=str(folder.root), **settings)}
    calls = []
    row = check_own("pets", spec, protocol, None, shots, lambda done, total: calls.append((done, total)))
    assert calls == [(number, len(calls)) for number in range(1, len(calls) + 1)]
    return row


def test_ones_own_data_are_complete_when_every_image_opens_and_every_class_can_be_trained_and_tested(own_pets):
    (own_pets.root / "cat/readme.txt").touch()
    assert checked(own_pets) == {
        "dataset": "pets", "found": {"train": 15, "val": 6, "test": 9}, "expected": None, "missing": 0,
        "class_names": ["cat", "dog", "newt"], "state": "complete", "problems": [],
        "notes": ["1 files that are no images were left out, the first cat/readme.txt"],
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Image size")
def test_every_image_that_cannot_be_used_is_listed_whatever_its_split(own_pets, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    cut = encoded(Image.effect_noise((6, 5), 50), "PNG")[:-30]
    huge = encoded(Image.new("L", (7, 6)), "PNG")
    for number in range(3):
        for name, content in (("cut", cut), ("empty", b""), ("huge", huge)):
            own_pets.add(f"dog/{name}{number}.png", content + b" " * number)
    row = checked(own_pets)
    assert (row["state"], row["missing"], len(row["problems"])) == ("incomplete", 9, 9)
    for name in (f"{kind}{number}" for kind in ("cut", "empty", "huge") for number in range(3)):
        assert any(f"dog/{name}.png of pets" in line for line in row["problems"])
    assert sum("7 x 6 pixels, more than the limit of 40" in line for line in row["problems"]) == 3


@pytest.mark.parametrize(("images", "problem"), [
    ({"cat": [1], "dog": [2], "newt": [3]}, "2 of 2 base classes have no test image.*; 1 of 1 novel classes have no"),
    ({"cat": [1], "dog": [2, 3], "newt": [4, 5]}, r"1 of 2 base classes have no test image \(cat\); give each more"),
    ({"cat": [1] * 10, "dog": [1] * 10, "newt": [1] * 10}, "classes 'cat' and 'dog' hold the same images; give each"),
    ({"cat": [1, 2], "dog": [1, 1, 2], "newt": [4, 5]}, "classes 'cat' and 'dog' hold the same images; give each"),
    ({"cat": [1] * 10, "dog": [2] * 10}, r"1 of 1 base classes have no test image \(cat\)"),
    ({"cat": [1, 2], "Cat": [3, 4]}, "'Cat' and 'cat' make the same prompt|'cat' and 'Cat' make the same prompt"),
    ({"cat & dog": [1, 2], "cat &amp; dog": [3, 4]}, "make the same prompt; rename one"),
    ({"cat &amp;amp; dog": [1, 2], "cat& dog": [3, 4]}, "make the same prompt; rename one"),
    ({"sea lion": [1, 2], "sea  lion ": [3, 4]}, "make the same prompt; rename one"),
    ({"L\u2019Hoest": [1, 2], "l'hoest": [3, 4]}, "make the same prompt; rename one"),
    ({"type 12": [1, 2], "type 1 2": [3, 4]}, "make the same prompt; rename one"),
])  # fmt: skip
def test_what_cannot_be_tested_or_told_apart_is_incomplete(folder, images, problem):
    for name, numbers in images.items():
        for index, number in enumerate(numbers):
            folder.add(f"{name}/{index}.png", png(number))
    row = checked(folder)
    assert row["state"] == "incomplete"
    with pytest.raises(UserError, match=problem):
        raise UserError("; ".join(row["problems"]))


def test_a_class_needs_training_images_where_the_protocol_trains_on_it(folder):
    folder.fill("train/cat", 4).fill("train/dog", 4).fill("test/cat", 2).fill("test/dog", 2).fill("test/newt", 2)
    line = "1 of 1 novel classes have no training image (newt); give each more images, or leave the class out"
    assert checked(folder)["problems"] == [line]
    for protocol in (PROTOCOLS["base-to-novel"], ON_TARGET):
        assert (checked(folder, protocol)["state"], checked(folder, protocol)["problems"]) == ("complete", [])


def test_fewer_images_than_shots_and_a_class_tested_alone_are_noted(own_pets):
    row = checked(own_pets, PROTOCOLS["base-to-novel"], shots=6)
    assert (row["state"], row["notes"]) == ("complete", [
        "classes with fewer than 6 training images: 2 of 2 (cat, dog)",
        "newt is tested among no other classes, so that every answer is right",
    ])  # fmt: skip
    assert checked(own_pets, PROTOCOLS["joint"], shots=5)["notes"] == []
    note = "no validation image of a class that is trained on, which a search needs"
    assert checked(own_pets, PROTOCOLS["joint"], val_share=0)["notes"] == [note]


def test_data_that_do_not_open_list_everything_in_the_way(own_pets):
    for name in ("a", "b", "c", "d", "e", "f"):
        own_pets.add(f"{name}.png")
    row = checked(own_pets)
    assert (row["state"], row["found"], len(row["problems"])) == ("incomplete", None, 6)
