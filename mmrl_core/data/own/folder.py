"""Images in a folder for each class, with folders for the splits above or below them or not (layout.py)."""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath

from mmrl_core.data.benchmark import coop
from mmrl_core.data.foreign import left_out
from mmrl_core.data.own.layout import Layout, layout_of
from mmrl_core.data.own.listed import METADATA
from mmrl_core.data.own.records import Gathered, Record, check_files, check_name, is_hidden, is_image, is_split, some
from mmrl_core.errors import UserError

CAMERA = re.compile(r"[1-9]\d\d[A-Z0-9_]{5}")  # as the standard of cameras' folders (DCF) has it: 100APPLE, 101CANON
PHONE_EDIT, EDITED = re.compile(r"^IMG_E(?=\d)", re.I), re.compile(r"-edited$", re.I)  # of iPhones; of Google Photos


def gather(images: Path) -> Gathered:
    """Every image below the class folders, by path. Raises UserError on images in no class folder, on links out of
    the folder, on files that are none, and on folders of splits that may be read in more than one way."""
    if not images.is_dir():
        raise UserError(f"the images folder {images} is not there; correct `images` or put it there")
    paths = sorted(path for path, _ in coop.walk(images) if not is_hidden(path))
    check_files(images, paths, str(images))
    image_paths = [path for path in paths if is_image(path)]
    if paths and not image_paths:
        raise UserError(f"{images} holds no image that is read: {'; '.join(left_out(paths))}")
    try:
        layout = layout_of(str(images), image_paths)
    except UserError:
        if tables := [path for path in paths if path.split("/")[-1] in METADATA]:
            raise UserError(f"{images} holds {tables[0]}; say `table: {images}`, not `images`") from None
        raise
    records = [Record(path, *layout.place(path)) for path in image_paths]
    _check_classes(images, {record.label for record in records})
    files = [images / path for path in image_paths]
    notes = _notes(images, [path for path in paths if not is_image(path)], records, layout)
    return Gathered(str(images), records, files, partial(coop.read_image, images), notes=notes)


def _notes(images: Path, others: list[str], records: list[Record], layout: Layout) -> list[str]:
    notes = left_out(others)
    notes += _notes_on_layout(records, layout)
    notes += _notes_on_copies([record.path for record in records])
    empty = _empty_folders(images, records, layout.class_at)
    notes += [f"{len(empty)} folders without an image were left out: {some(empty)}"] if empty else []
    labels = {record.label for record in records}
    nested = sorted(labels - {record.label for record in records if record.path.split("/")[-2] == record.label})
    return notes + [f"the folder {name} is a class, as no other split is named" for name in filter(is_split, nested)]


def _check_classes(images: Path, labels: set[str]) -> None:
    """Raises UserError where the folders are those that cameras make, which say nothing of what is in the pictures."""
    if labels and all(CAMERA.fullmatch(label) for label in labels):
        raise UserError(
            f"{images}: {some(sorted(labels))}: such folders are a camera's, not of classes; sort the images into a "
            "folder for each class"
        )


def _notes_on_copies(paths: list[str]) -> list[str]:
    """A note on images whose names say that they are another of the same folder, edited or in another format."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition("/")
        by_name[f"{folder}/{EDITED.sub('', PHONE_EDIT.sub('IMG_', name.rpartition('.')[0])).lower()}"].append(path)
    groups = [sorted(group, key=lambda path: (len(path), path)) for group in by_name.values() if len(group) > 1]
    if not groups:
        return []
    number, (first, copy, *_) = sum(len(group) - 1 for group in groups), groups[0]
    return [
        f"images that are another edited or in another format, by their names: {number}, the first {copy} of {first}; "
        "leave one of each out, or one may test what the other trained"
    ]


def _notes_on_layout(records: list[Record], layout: Layout) -> list[str]:
    """How folders were read, where others might have read them otherwise."""
    splits = [f"{name} is {split}" for name, split in sorted(layout.splits.items()) if not is_split(name)]
    notes = [f"folders of splits: {', '.join(splits)}"] if splits else []
    depth = max(layout.class_at, layout.split_at if layout.splits else 0) + 1
    below = sorted({"/".join(record.path.split("/")[depth:-1]) for record in records} - {""})
    return notes + (
        [f"folders below those of classes make no classes of their own: {some(below)}"] if len(below) > 1 else []
    )


def _empty_folders(images: Path, records: list[Record], class_at: int) -> list[str]:
    """Folders down to those of classes that hold no image, but for a class that another split has images of."""
    holding = {folder for record in records for folder in PurePosixPath(record.path).parents}
    labels = {record.label for record in records}
    empty = []
    for depth in range(class_at + 1):
        for folder in _folders(images, depth):
            known = folder in holding or (depth == class_at and folder.name in labels)
            if folder.parent in holding and not known:
                empty.append(str(folder))
    return sorted(empty)


def _folders(images: Path, depth: int) -> list[PurePosixPath]:
    paths = [str(path.relative_to(images)) for path in images.glob("/".join(["*"] * (depth + 1))) if path.is_dir()]
    for path in paths:
        check_name(path, str(images))
    return [PurePosixPath(path) for path in paths if not is_hidden(path)]
