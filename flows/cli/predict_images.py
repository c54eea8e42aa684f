"""The images that `mmrl predict` is given: files, folders of them, tables that name them; found one at a time.

A table's paths, and links in a folder or table, must stay inside that folder: both may come from somebody else.
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmrl_core.data.foreign import foreign_name, left_out
from mmrl_core.data.own.records import check_name, is_hidden, is_image
from mmrl_core.data.source import IMAGE_EXTENSIONS
from mmrl_core.errors import UserError

TABLES = (".csv", ".parquet")


def count_images(arguments: Sequence[Path]) -> int:
    """How many images `find_images` gives. Raises UserError where there is none, and as `find_images` does."""
    if total := sum(1 for _ in find_images(arguments)):
        return total
    if notes := unread_notes(arguments):
        raise UserError(f"{', '.join(map(str, arguments))}: no image that is read is there: {notes[0]}")
    known = ", ".join(sorted(IMAGE_EXTENSIONS))
    raise UserError(f"{', '.join(map(str, arguments))}: no image is there; an image file ends in one of {known}")


def find_images(arguments: Sequence[Path]) -> Iterator[Path]:
    """The image files of every argument in turn: a file itself, a folder's in sorted order, a table's row by row.

    Raises UserError naming a folder or table that cannot be read, and a path that leaves it.
    """
    for argument in arguments:
        if os.path.isdir(argument):  # Path.is_dir raises where it may not look
            yield from _in_folder(argument, argument)
        elif argument.suffix.lower() in TABLES:
            yield from _in_table(argument)
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


def _in_table(table: Path) -> Iterator[Path]:
    for number, name in enumerate(_names(table), start=1):
        if not isinstance(name, str) or not name:
            raise UserError(f"{table}, image {number} has no path; fill in the column path")
        check_name(name, f"{table}, image {number}")
        path = table.parent / name
        _check_inside(path, table.parent)
        yield path


def _names(table: Path) -> Iterator[object]:
    """The column `path`, row by row."""
    import pyarrow

    try:
        yield from (_csv_names if table.suffix.lower() == ".csv" else _parquet_names)(table)
    except KeyError:
        raise UserError(f"{table} has no column path; name the images' column so") from None
    except (OSError, ValueError, csv.Error, pyarrow.ArrowException) as error:
        raise UserError(f"{table} cannot be read as {table.suffix[1:].lower()} ({error}); check the file") from None


def _csv_names(table: Path) -> Iterator[str | None]:
    with open(table, newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            yield row["path"]


def _parquet_names(table: Path) -> Iterator[object]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(table) as file:
        for batch in file.iter_batches(columns=["path"]):
            yield from batch.column("path").to_pylist()


def _check_inside(path: Path, folder: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UserError(f"{path} is not a path that can be followed ({error}); put it right") from None
    if not inside:
        raise UserError(f"{path} leads out of {folder}; copy what it names there, or give that as its own argument")
