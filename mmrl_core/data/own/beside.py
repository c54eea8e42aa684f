"""What a folder that somebody gives is: folders of classes, or images with a table that says what they are.

Kaggle's folders have such a table beside `train`, with ids in place of paths; Label Studio's exports lie beside
`media`.
"""

import csv
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmrl_core.data.own import folder as class_folders
from mmrl_core.data.own import label_studio
from mmrl_core.data.own.listed import with_extension
from mmrl_core.data.own.records import as_text, is_hidden, is_image
from mmrl_core.data.own.settings import ColumnsSection, OwnSection
from mmrl_core.data.own.table import ALSO, KINDS
from mmrl_core.errors import UserError
from mmrl_core.parsing import parse_json

ROWS, TABLES, FOLDERS = 50, 20, 50  # that are looked at
UPLOADS = "media/upload"  # where Label Studio keeps what was uploaded


def section_of(folder: Path) -> OwnSection:
    """How data.own describes a folder: as class folders where it has two or more, else by a table in it that names its
    images and has a column of labels, else as class folders again, whose reader says what is wrong."""
    if not _has_classes(folder):
        for table in _tables(folder):
            if section := _by_table(folder, table):
                return section
    return OwnSection(images=str(folder))


def _has_classes(folder: Path) -> bool:
    try:
        return len(set(class_folders.gather(folder).records.labels)) > 1
    except UserError:
        return False


def _tables(folder: Path) -> list[Path]:
    """Tables in the folder itself; none that shows how to hand answers in."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS and not is_hidden(path.name))
    return [path for path in paths if "submission" not in path.name.lower()][:TABLES]


def _by_table(folder: Path, table: Path) -> OwnSection | None:
    """None where no column names images here, or none can be told to be the labels."""
    rows = _first_rows(table)
    for column, root in ((column, root) for root in _roots(folder) for column in _columns(rows)):
        if all(_names_image(root, row.get(column)) for row in rows) and (label := _label_column(rows, column)):
            images = str(root) if root != folder else None
            return OwnSection(table=str(table), images=images, columns=_said(column, label))
    return None


def _first_rows(table: Path) -> list[dict[str, Any]]:
    """No rows for a table that cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        if table.suffix.lower() == ".csv":
            with open(table, encoding="utf-8-sig", newline="") as file:
                return list(islice(csv.DictReader(file), ROWS))
        if table.suffix.lower() == ".json":
            return label_studio.rows_of(parse_json(table.read_bytes()), str(table))[:ROWS]
        with pyarrow.parquet.ParquetFile(table) as file:
            return next((batch.to_pylist() for batch in file.iter_batches(ROWS)), [])
    except (OSError, ValueError, csv.Error, UserError, pyarrow.ArrowException):
        return []


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in dict.fromkeys(name for row in rows for name in row) if isinstance(name, str)]


def _roots(folder: Path) -> Iterator[Path]:
    """Where the paths may start: in the folder, where Label Studio's uploads lie, or in a folder of it."""
    yield folder
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    yield from (path for path in (folder / UPLOADS, *below[:FOLDERS]) if path.is_dir())


def _names_image(root: Path, value: Any) -> bool:
    text = as_text(value) or ""
    try:
        path = with_extension(root, label_studio.path_below(root, text, ""))
    except (UserError, ValueError):
        return False
    return is_image(path) and ".." not in path.split("/") and os.path.isfile(root / path)


def _label_column(rows: list[dict[str, Any]], path: str) -> str | None:
    """The one column by a usual name, else the one beside the paths; it must hold two labels or more."""
    others = [name for name in _columns(rows) if name != path]
    usual = [name for name in others if name.strip().lower() in ("label", *ALSO["label"])]
    chosen = usual if len(usual) == 1 else others
    several = len({as_text(row.get(chosen[0])) for row in rows}) > 1 if len(chosen) == 1 else False
    return chosen[0] if several else None


def _said(path: str, label: str) -> ColumnsSection:
    """What has to be said of the columns: those that have none of the usual names."""
    said = {
        column: name.strip()
        for column, name in (("path", path), ("label", label))
        if name.strip().lower() not in (column, *ALSO[column])
    }
    return ColumnsSection(**said)
