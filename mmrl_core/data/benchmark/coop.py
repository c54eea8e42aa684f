"""The CoOp benchmark's folders as people have them: images beside a split_zhou_<Dataset>.json (method.md)."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from json.encoder import encode_basestring_ascii as _quoted  # ASCII: names may be no UTF-8
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmrl_core.data.known.files import Files
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file
from mmrl_core.parsing import parse_json

SPLITS = ("train", "val", "test")
ROWS = 10_000  # of a digest, in memory at once


class Layout(NamedTuple):
    """Where a data set lies below the data root, and its prompt template."""

    folder: str
    images: str
    split_file: str
    template: str


LAYOUTS = {
    "caltech101": Layout("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "a photo of a {}."),
    "oxford_pets": Layout("oxford_pets", "images", "split_zhou_OxfordPets.json", "a photo of a {}, a type of pet."),
    "stanford_cars": Layout("stanford_cars", ".", "split_zhou_StanfordCars.json", "a photo of a {}."),
    "oxford_flowers": Layout(
        "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "a photo of a {}, a type of flower."
    ),
    "food101": Layout("food-101", "images", "split_zhou_Food101.json", "a photo of {}, a type of food."),
    "sun397": Layout("sun397", "SUN397", "split_zhou_SUN397.json", "a photo of a {}."),
    "dtd": Layout("dtd", "images", "split_zhou_DescribableTextures.json", "{} texture."),
    "eurosat": Layout("eurosat", "2750", "split_zhou_EuroSAT.json", "a centered satellite photo of {}."),
    "ucf101": Layout("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "a photo of a person doing {}."),
}


def locate(layout: Layout, root: str | Path) -> tuple[Path, Path]:
    """The images folder and the split file. Raises UserError naming the first of root, folder, images, split file
    that is missing."""
    root, folder = Path(root), Path(root) / layout.folder
    images, split_path = folder / layout.images, folder / layout.split_file
    for directory, what in ((root, "data root"), (folder, "data set folder"), (images, "images folder")):
        if not directory.is_dir():
            raise UserError(f"the {what} {directory} is not there; the root must hold {layout.folder}/{layout.images}")
    if not split_path.is_file():
        raise UserError(f"the split file {split_path} is not there; put CoOp's {layout.split_file} there")
    return images, split_path


def needs(key: str) -> str:
    """What must lie below the data root."""
    layout = LAYOUTS[key]
    return f"{layout.folder}/{layout.images}, {layout.folder}/{layout.split_file}"


def template(key: str) -> str:
    """The published prompt."""
    return LAYOUTS[key].template


def read(key: str, root: str | Path) -> tuple[dict[str, list[Item]], list[str]]:
    """The three lists and the paths in them that are not there. Raises UserError as `open_source` does."""
    images, split_path = locate(LAYOUTS[key], root)
    splits = read_splits(split_path)
    class_names_by_label(splits, split_path)
    return splits, missing_images(images, split_path, splits)


def open_source(key: str, root: str | Path) -> Source:
    """The dataset, every image known to be there. Raises UserError on anything missing or malformed."""
    images, split_path = locate(LAYOUTS[key], root)
    splits = read_splits(split_path)
    class_names = class_names_by_label(splits, split_path)
    check_images(images, split_path, splits)
    lists = splits["train"], splits["val"], splits["test"]
    return Source(key, [template(key)], class_names, *lists, reader=Files(images))


def read_splits(split_path: Path) -> dict[str, list[Item]]:
    """The train, val and test lists of a split file. Raises UserError on anything but [path, label, class name]
    rows, and on paths that leave the images folder."""
    try:
        document = parse_json(split_path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {split_path} ({error.strerror}); make it readable") from None
    except ValueError as error:
        raise UserError(f"{split_path} is not valid JSON ({error}); fetch the split file again") from None
    if not isinstance(document, dict) or not all(isinstance(document.get(split), list) for split in SPLITS):
        raise UserError(f"{split_path} has no train, val and test lists; fetch CoOp's split file again")
    return {
        split: [_item(row, f"{split_path}, {split} item {index}") for index, row in enumerate(document[split])]
        for split in SPLITS
    }


def _item(row: Any, where: str) -> Item:
    types = [type(value) for value in row] if isinstance(row, list) else None
    if types != [str, int, str] or not row[0] or not row[2].strip():
        raise UserError(f"{where} is {row!r}, not [path, label, class name]; correct the split file")
    path = PurePosixPath(row[0])
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: the path {row[0]!r} leaves the images folder; correct the split file")
    return Item(*row)


def class_names_by_label(splits: dict[str, list[Item]], split_path: Path) -> list[str]:
    """Class names, one a label 0..n-1. Raises UserError when labels have gaps or names are not one to one."""
    name_of: dict[int, str] = {}
    for item in (item for items in splits.values() for item in items):
        if name_of.setdefault(item.label, item.class_name) != item.class_name:
            raise UserError(
                f"{split_path}: label {item.label} is named both {name_of[item.label]!r} and {item.class_name!r}"
                f" ({item.path}); correct the split file"
            )
    if sorted(name_of) != list(range(len(name_of))) or not name_of:
        raise UserError(f"{split_path}: labels must be 0 to n-1, {_first_gap(name_of)}; correct the split file")
    _check_distinct(name_of, split_path)
    return [name_of[label] for label in range(len(name_of))]


def _first_gap(labels: Collection[int]) -> str:
    negative = [label for label in labels if label < 0]
    if negative:
        return f"{min(negative)} is negative"
    return f"none has label {next(label for label in range(len(labels) + 1) if label not in labels)}"


def _check_distinct(name_of: dict[int, str], split_path: Path) -> None:
    label_of: dict[str, int] = {}
    for label, name in sorted(name_of.items()):
        first = label_of.setdefault(name.replace("_", " "), label)  # as prompts spell it
        if first != label:
            raise UserError(f"{split_path}: labels {first} and {label} are both named {name!r}; rename one of them")


def walk(folder: Path, leave_out: Callable[[str], bool] | None = None) -> Iterator[tuple[str, os.DirEntry]]:
    """Every entry below `folder` that is no directory, by its relative path, which comes with it; links are listed, not
    followed. Files and folders of a name that is to be left out are."""
    return ((above + entry.name, entry) for above, entries in runs(folder, leave_out) for entry in entries)


def runs(folder: Path, leave_out: Callable[[str], bool] | None = None) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """The same entries, those that follow each other in one folder at once, with what their paths have before their
    names."""
    pending = [("", _entries(str(folder), leave_out))]
    while pending:
        above, (names, entries) = pending[-1]
        run, below = list[os.DirEntry](), None
        for name in names:
            if name.endswith("/"):
                below = above + name, _entries(entries[name].path, leave_out)
                break
            run.append(entries[name])
        if run:
            yield above, run
        pending.append(below) if below else pending.pop()


def _entries(folder: str, leave_out: Callable[[str], bool] | None) -> tuple[Iterator[str], dict[str, os.DirEntry]]:
    """The names of what a folder holds, in order, and what has them; those of folders end in a slash, so that the walk
    as a whole comes in the paths' order."""
    try:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not (leave_out and leave_out(entry.name))]
    except OSError as error:
        raise UserError(f"cannot list the folder {folder} ({error.strerror}); make it readable") from None
    by_name = {entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name: entry for entry in entries}
    return iter(sorted(by_name)), by_name


def missing_images(images: Path, split_path: Path, splits: dict[str, list[Item]]) -> list[str]:
    """Paths that a split names and that are not below `images`. Raises UserError on a link that leads out of it."""
    present = {relative for relative, entry in walk(images) if entry.is_file(follow_symlinks=False)}
    named = (item.path for items in splits.values() for item in items)
    unseen = [path for path in named if path not in present and str(PurePosixPath(path)) not in present]
    return [path for path in unseen if not _is_linked_inside(images, path, split_path)]


def check_images(images: Path, split_path: Path, splits: dict[str, list[Item]]) -> None:
    """Raises UserError when a split names an image that is missing or lies outside `images` behind a link."""
    if missing := missing_images(images, split_path, splits):
        raise UserError(
            f"{split_path} names {missing[0]}, which is not in {images} ({len(missing)} missing in all);"
            " complete the images folder"
        )


def _is_linked_inside(images: Path, path: str, split_path: Path) -> bool:
    if not os.path.isfile(images / path):
        return False
    if not (images / path).resolve().is_relative_to(images.resolve()):
        raise UserError(f"{split_path} names {path}, a link out of {images}; put the image itself there")
    return True


def fingerprint(key: str, root: str | Path) -> dict[str, Any]:
    """Hashes that change when the split file or any file below the images folder does (path, size, mtime in ns)."""
    images, split_path = locate(LAYOUTS[key], root)
    counts = {split: len(items) for split, items in read_splits(split_path).items()}
    digest, files = files_digest(images)
    return {"split_sha256": sha256_file(split_path), "files_sha256": digest, "counts": {**counts, "files": files}}


def files_digest(folder: Path) -> tuple[str, int]:
    """Hash of one stat walk (path, size, mtime in ns) and the number of files."""
    found = ((path, entry.stat(follow_symlinks=False)) for path, entry in walk(folder))
    return rows_digest((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def rows_digest(files: Iterable[tuple[str, int, int]]) -> tuple[str, int]:
    """Hash of path, size and mtime of files as one JSON list, of which only a part is in memory, and their number."""
    digest, number, rows = hashlib.sha256(b"["), 0, iter(files)
    while part := [f"[{_quoted(path)}, {size}, {time}]" for path, size, time in islice(rows, ROWS)]:
        digest.update(f"{', ' if number else ''}{', '.join(part)}".encode())
        number += len(part)
    digest.update(b"]")
    return digest.hexdigest(), number
