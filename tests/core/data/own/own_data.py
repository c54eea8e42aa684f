"""Folders of one's own data that tests fill, and short views of what they became."""

from mmrl_core.data.own import dataset
from mmrl_core.data.own.settings import OwnSection
from tests.core.data.odd_images import png

SPLITS = ("train", "val", "test")


class Folder:
    """An images folder that grows by `add`; every picture in it is another one unless told otherwise."""

    def __init__(self, root):
        self.root = root
        self.drawn = 0
        root.mkdir(parents=True)

    def add(self, path: str, content: bytes | None = None):
        self.drawn += 1
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(self.drawn) if content is None else content)
        return self

    def fill(self, folder: str, number: int):
        for index in range(number):
            self.add(f"{folder}/{index:03d}.png")
        return self

    def open(self, **settings):
        return dataset.open_source("pets", OwnSection(images=str(self.root), **settings))


def where(source):
    """Path -> split."""
    return {item.path: split for split in SPLITS for item in source.items(split)}


def counts(source, label):
    return tuple(sum(item.label == label for item in source.items(split)) for split in SPLITS)


def noted(source, text):
    return next((note for note in source.notes if text in note), None)
