"""Tiny real data sets: in the CoOp layout, and folders of one's own."""

import io
import json

import pytest
from PIL import Image

from mmrl_core.data.catalog import open_source
from tests.core.data.own.own_data import Folder

NAMES = ("cat", "dog", "newt")
COUNTS = {"train": 5, "val": 3, "test": 2}  # a class


def _jpeg(red: int, blue: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (10, 8), (red, 0, blue)).save(encoded, format="JPEG")
    return encoded.getvalue()


class Pets:
    """An oxford_pets folder of three classes whose split file can be rewritten."""

    def __init__(self, root):
        self.root = root
        self.images = root / "oxford_pets" / "images"
        self.split_path = root / "oxford_pets" / "split_zhou_OxfordPets.json"
        self.images.mkdir(parents=True)
        self.splits = {split: self._rows(split, number) for split, number in COUNTS.items()}
        self.save()

    def _rows(self, split: str, number: int) -> list:
        rows = [[f"{name}/{split}_{i}.JPG", label, name] for label, name in enumerate(NAMES) for i in range(number)]
        for index, (path, label, _) in enumerate(rows):
            (self.images / path).parent.mkdir(exist_ok=True)
            (self.images / path).write_bytes(_jpeg(80 * label, index))
        return rows

    def save(self, document=None) -> None:
        self.split_path.write_text(json.dumps(self.splits if document is None else document))

    def rewrite(self, change) -> None:
        self.splits = {split: [change(*row) for row in rows] for split, rows in self.splits.items()}
        self.save()

    def open(self):
        return open_source("oxford_pets", self.root)


@pytest.fixture
def pets(tmp_path) -> Pets:
    return Pets(tmp_path / "data")


@pytest.fixture(scope="session")
def digits():
    return open_source("digits", "")


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "pets")


@pytest.fixture
def own_pets(folder) -> Folder:
    return folder.fill("cat", 10).fill("dog", 10).fill("newt", 10)
