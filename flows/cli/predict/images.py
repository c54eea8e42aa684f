"""The images that `mmrl predict` is given: files, folders of them, tables that name them; found one at a time.

A table's paths, and links in a folder or table, must stay inside that folder: both may come from somebody else.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmrl_core.data.foreign import foreign_name, left_out
from mmrl_core.data.own.listed import image_path
from mmrl_core.data.own.records import is_hidden, is_image
from mmrl_core.data.own.table import KINDS, Wanted, each_row
from mmrl_core.data.source import IMAGE_EXTENSIONS
from mmrl_core.errors import UserError


class Tables(NamedTuple):
    """How tables are read: the column of the paths, None for one of the usual names; the folder that paths start at,
    None for the table's own; whether images may be absent."""

    column: str | None = None
    images: Path | None = None
    absent_ok: bool = False


PLAIN = Tables()


def count_images(arguments: Sequence[Path], how: Tables = PLAIN) -> int:
    """How many images `find_images` gives. Raises UserError where there is none, where `how` is of no use, and as
    `find_images` does."""
    if (how.column or how.images) and not any(argument.suffix.lower() in KINDS for argument in arguments):
        raise UserError(
            f"--column and --images are of tables; give one that ends in {' or '.join(KINDS)}, or leave them"
        )
    if total := sum(1 for _ in find_images(arguments, how)):
        return total
    if notes := unread_notes(arguments):
        raise UserError(f"{', '.join(map(str, arguments))}: no image that is read is there: {notes[0]}")
    known = ", ".join(sorted(IMAGE_EXTENSIONS))
    raise UserError(f"{', '.join(map(str, arguments))}: no image is there; an image file ends in one of {known}")


def find_images(arguments: Sequence[Path], how: Tables = PLAIN) -> Iterator[Path]:
    """The image files of every argument in turn: a file itself, a folder's in sorted order, a table's row by row, by
    the rules of the tables that are trained on, except that one image may be in several rows.

    Raises UserError naming a folder or table that cannot be read, and a path that leaves it.
    """
    for argument in arguments:
        if os.path.isdir(argument):  # Path.is_dir raises where it may not look
            yield from _in_folder(argument, argument)
        elif argument.suffix.lower() in KINDS:
            yield from _in_table(argument, how)
        else:
            yield argument


def unread_notes(arguments: Sequence[Path]) -> list[str]:
    """A note on each format of images in the folders that is not read and so left out."""
    folders = [argument for argument in arguments if os.path.isdir(argument)]
    return left_out([str(path) for folder in folders for path in _in_folder(folder, folder, foreign_name)])


def _in_folder(folder: Path, root: Path, wanted: Callable[[str], object] = is_image) -> Iterator[Path]:
    """The images below a folder, in sorted order. Hidden files are left out, and links to folders are not followed: a
    folder inside the root is walked anyway."""
    try:
        paths = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError as error:
        raise UserError(f"cannot list the folder {folder} ({error.strerror}); check its permissions") from None
    for path in paths:
        is_folder, is_link = os.path.isdir(path), path.is_symlink()
        if is_link and (is_folder or wanted(path.name)):
            _check_inside(path, root)
        if is_folder and not is_link:
            yield from _in_folder(path, root, wanted)
        elif not is_folder and wanted(path.name):
            yield path


def _in_table(table: Path, how: Tables) -> Iterator[Path]:
    root = how.images or table.parent
    if not root.is_dir():
        raise UserError(f"the images folder {root} is not there; correct --images or put it there")
    wanted = Wanted(("path",), named={"path": how.column} if how.column else {}, by="--column {name}")
    for row in each_row(table, wanted):
        yield root / image_path(root, row, absent_ok=how.absent_ok)


def _check_inside(path: Path, folder: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UserError(f"{path} is not a path that can be followed ({error}); put it right") from None
    if not inside:
        raise UserError(f"{path} leads out of {folder}; copy what it names there, or give that as its own argument")
