"""Images in a folder for each class, with folders for the splits above or below them or not (layout.py)."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path, PurePosixPath

from mmrl_core.data.benchmark import coop
from mmrl_core.data.foreign import left_out
from mmrl_core.data.known.files import Files, States
from mmrl_core.data.own.layout import Layout, layout_of
from mmrl_core.data.own.listed import METADATA
from mmrl_core.data.own.records import Gathered, Inside, Records, check_name, is_hidden, is_image, is_split, some
from mmrl_core.errors import UserError, refuse_all

Run = tuple[str, list[str]]  # a folder, and the paths of images in it that follow each other in the order of all

CAMERA = re.compile(r"[1-9]\d\d[A-Z0-9_]{5}")  # as the standard of cameras' folders (DCF) has it: 100APPLE, 101CANON
PHONE_EDIT, EDITED = re.compile(r"^IMG_E(?=\d)", re.I), re.compile(r"-edited$", re.I)  # of iPhones; of Google Photos


def gather(images: Path) -> Gathered:
    """Every image below the class folders, by path. Raises UserError on images in no class folder, on links out of
    the folder, on files that are none, and on folders of splits that may be read in more than one way."""
    if not images.is_dir():
        raise UserError(f"the images folder {images} is not there; correct `images` or put it there")
    found, states, others = _walked(images)
    if others and not found:
        raise UserError(f"{images} holds no image that is read: {'; '.join(left_out(others))}")
    inside: dict[str, list[str]] = defaultdict(list)  # folder -> the images in it
    for folder, paths in found:
        inside[folder] += paths
    try:
        layout = layout_of(str(images), inside)
    except UserError:
        if tables := [path for path in others if path.split("/")[-1] in METADATA]:
            raise UserError(f"{images} holds {tables[0]}; say `table: {images}`, not `images`") from None
        raise
    places = {folder: layout.place(folder) for folder in inside}
    _check_classes(images, {label for label, _ in places.values()})
    records, notes = _placed(found, places), partial(_notes, images, others, inside, layout)
    return Gathered(str(images), records, [], Files(images), notes=notes, states=states, files_of_their_own=True)


def _placed(found: list[Run], places: Mapping[str, tuple[str, str | None]]) -> Records:
    records = Records([], [], [])
    for folder, paths in found:
        label, split = places[folder]
        records.paths.extend(paths)
        records.labels.extend([label] * len(paths))
        records.splits.extend([split] * len(paths))
    return records


def _walked(images: Path) -> tuple[list[Run], States, list[str]]:
    """The images in order of their paths, their states, and the paths of other files. Raises UserError naming what is
    no file below the folder: an entry that is a file as such, and no link, is one."""
    found, states, others, problems = list[Run](), States(), list[str](), list[str]()
    inside, is_read = Inside(images), cache(_is_read)
    for above, entries in coop.runs(images, is_hidden):
        read, ascii_above = list[os.DirEntry](), above.isascii()
        for entry in entries:
            name = entry.name
            # A plain file lies below the folder, as no link was followed.
            is_plain = ascii_above and name.isascii() and entry.is_file(follow_symlinks=False)
            if not is_plain and (problem := inside.problem(above + name, str(images))):
                problems.append(problem)
            elif is_read(name[name.rfind(".") :]):
                read.append(entry)
            else:
                others.append(above + name)
        if read:
            found.append((above[:-1], [above + entry.name for entry in read]))
            states.extend(_stats(read))
    refuse_all("files", problems)
    return found, states, others


def _is_read(end: str) -> bool:
    """Whether a file is an image by what its name has from its last dot on."""
    return is_image(f"name{end}")


def _stats(entries: list[os.DirEntry]) -> Iterator[os.stat_result]:
    for entry in entries:
        try:
            yield entry.stat()
        except OSError as error:
            raise UserError(f"cannot find {entry.path} ({error.strerror}); restore it or leave it out") from None


def _notes(images: Path, others: list[str], inside: dict[str, list[str]], layout: Layout) -> list[str]:
    label_of = {folder: layout.place(folder)[0] for folder in inside}
    notes = left_out(others)
    notes += _notes_on_layout(list(inside), layout)
    notes += _notes_on_copies(inside)
    empty = _empty_folders(images, label_of, layout.class_at)
    notes += [f"{len(empty)} folders without an image were left out: {some(empty)}"] if empty else []
    own = {label for folder, label in label_of.items() if folder.rpartition("/")[2] == label}
    nested = sorted(set(label_of.values()) - own)
    return notes + [f"the folder {name} is a class, as no other split is named" for name in filter(is_split, nested)]


def _check_classes(images: Path, labels: set[str]) -> None:
    """Raises UserError where the folders are those that cameras make, which say nothing of what is in the pictures."""
    if labels and all(CAMERA.fullmatch(label) for label in labels):
        raise UserError(
            f"{images}: {some(sorted(labels))}: such folders are a camera's, not of classes; sort the images into a "
            "folder for each class"
        )


def _notes_on_copies(inside: dict[str, list[str]]) -> list[str]:
    """A note on images whose names say that they are another of the same folder, edited or in another format."""
    groups = [group for paths in inside.values() for group in _copies(paths)]
    if not groups:
        return []
    number = sum(len(group) - 1 for group in groups)
    first, copy, *_ = sorted(min(groups), key=lambda path: (len(path), path))
    return [
        f"images that are another edited or in another format, by their names: {number}, the first {copy} of {first}; "
        "leave one of each out, or one may test what the other trained"
    ]


def _copies(paths: list[str]) -> Iterator[list[str]]:
    """Of one folder's images, in order, those that are one another's."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        name = path.rpartition("/")[2].rpartition(".")[0].lower()
        if name.startswith("img_e") or name.endswith("-edited"):
            name = EDITED.sub("", PHONE_EDIT.sub("IMG_", name)).lower()
        by_name.setdefault(name, []).append(path)
    return (group for group in by_name.values() if len(group) > 1)


def _notes_on_layout(folders: list[str], layout: Layout) -> list[str]:
    """How folders were read, where others might have read them otherwise."""
    splits = [f"{name} is {split}" for name, split in sorted(layout.splits.items()) if not is_split(name)]
    notes = [f"folders of splits: {', '.join(splits)}"] if splits else []
    depth = max(layout.class_at, layout.split_at if layout.splits else 0) + 1
    below = sorted({"/".join(folder.split("/")[depth:]) for folder in folders} - {""})
    return notes + (
        [f"folders below those of classes make no classes of their own: {some(below)}"] if len(below) > 1 else []
    )


def _empty_folders(images: Path, label_of: dict[str, str], class_at: int) -> list[str]:
    """Folders down to those of classes that hold no image, but for a class that another split has images of."""
    holding = {above for folder in label_of for above in (PurePosixPath(folder), *PurePosixPath(folder).parents)}
    labels = set(label_of.values())
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
