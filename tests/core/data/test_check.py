"""What `check` says of split files and of real photographs; benchmark/ has ImageNet's kind and Aircraft."""

import os

import pytest

from mmrl_core.data import check as checking
from mmrl_core.data.check import check
from mmrl_core.errors import UserError
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
