"""Images in a folder for each class, with train, val and test folders above them or not."""

from functools import partial
from pathlib import Path

from mmrl_core.data.benchmark import coop
from mmrl_core.data.foreign import left_out
from mmrl_core.data.own.records import Gathered, Record, check_file, check_name, is_hidden, is_image, some, split_named
from mmrl_core.errors import UserError


def gather(images: Path) -> Gathered:
    """Every image below the class folders, by path. Raises UserError on an image in no class folder, on a link out of
    the folder, on a file that is none, and on split folders without train and test."""
    if not images.is_dir():
        raise UserError(f"the images folder {images} is not there; correct `images` or put it there")
    paths, splits = _visible_files(images), _split_folders(images)
    image_paths = [path for path in paths if is_image(path)]
    if paths and not image_paths:
        raise UserError(f"{images} holds no image that is read: {'; '.join(left_out(paths))}")
    records = [_record(images, path, splits) for path in image_paths]
    files = [images / path for path in image_paths]
    notes = _notes(images, [path for path in paths if not is_image(path)], records, splits)
    return Gathered(str(images), records, files, partial(coop.read_image, images), notes=notes)


def _visible_files(images: Path) -> list[str]:
    paths = sorted(path for path, _ in coop.walk(images) if not is_hidden(path))
    for path in paths:
        check_file(images, path, str(images))
    return paths


def _subfolders(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    for name in names:
        check_name(name, str(folder))
    return names


def _split_folders(images: Path) -> dict[str, str]:
    """Folder name -> split, where the subfolders are splits; empty where they are classes."""
    folders = _subfolders(images)
    splits = {name: split for name in folders if (split := split_named(name))}
    if not {"train", "test"} <= set(splits.values()) and len(splits) < len(folders):
        return {}
    others = [name for name in folders if name not in splits]
    if others:
        raise UserError(f"{images} holds {some(others)} beside train and test; leave only train, val and test there")
    if len(set(splits.values())) < len(splits):
        raise UserError(f"{images}: two of the folders {some(folders)} name one split; leave one of them")
    return splits


def _record(images: Path, path: str, splits: dict[str, str]) -> Record:
    *folders, _ = path.split("/")
    depth = 1 if splits else 0  # how many folders lie above the class
    if len(folders) <= depth:
        raise UserError(f"{images}: {path} lies in no class folder; move it into the folder of its class")
    return Record(path, folders[depth], splits.get(folders[0]))


def _notes(images: Path, others: list[str], records: list[Record], splits: dict[str, str]) -> list[str]:
    notes = left_out(others)
    classes = {name for above in splits or ["."] for name in _subfolders(images / above)}
    empty = sorted(classes - {record.label for record in records})
    return notes + ([f"{len(empty)} class folders without an image were left out: {some(empty)}"] if empty else [])
