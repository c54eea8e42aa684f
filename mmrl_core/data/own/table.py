"""Images named by a table: CSV or Parquet, with the columns path, label and, if wanted, split."""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmrl_core.data.benchmark import coop
from mmrl_core.data.foreign import check_format
from mmrl_core.data.own.records import Gathered, Record, as_text, check_file, did_you_mean, is_image, split_named
from mmrl_core.errors import UserError

KINDS = (".csv", ".parquet")


class Row(NamedTuple):
    """A row's values by column, and what to call it in a message."""

    where: str
    values: dict[str, Any]


def gather(table: Path, images: Path | None = None) -> Gathered:
    """The images that the rows name, below `images` or the table's own folder, by path.

    Raises UserError naming the first row whose path, label or split cannot be used.
    """
    root = images or table.parent
    if not root.is_dir():
        raise UserError(f"the images folder {root} is not there; correct `images` or put it there")
    rows = read_rows(table, ("path", "label"))
    with_split = any(as_text(row.values.get("split")) for row in rows)
    records = [_record(root, row, with_split) for row in rows]
    _check_once(rows, records)
    files = [table, *(root / record.path for record in records)]
    return Gathered(str(table), sorted(records), files, partial(coop.read_image, root))


def read_rows(table: Path, needed: tuple[str, ...]) -> list[Row]:
    """The rows of a CSV or Parquet file. Raises UserError when it cannot be read or lacks one of the columns."""
    if table.suffix.lower() not in KINDS:
        raise UserError(f"{table} is no table that can be read; give one of {', '.join(KINDS)}")
    if not table.is_file():
        raise UserError(f"the table {table} is not there; correct its path or put it there")
    try:
        rows = list(_csv_rows(table, needed) if table.suffix.lower() == ".csv" else _parquet_rows(table, needed))
    except (OSError, ValueError, csv.Error) as error:  # UnicodeDecodeError and pyarrow's errors are ValueErrors
        raise UserError(f"cannot read the table {table} ({error}); save it again, a CSV as UTF-8") from None
    if not rows:
        raise UserError(f"the table {table} has no rows; add some")
    return rows


def _csv_rows(table: Path, needed: tuple[str, ...]) -> Iterator[Row]:
    with open(table, encoding="utf-8-sig", newline="") as file:  # Excel begins UTF-8 with a byte order mark
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        _check_columns(table, header, needed)
        for cells in reader:
            where = f"{table}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise UserError(f"{where} has {len(cells)} columns, the header {len(header)}; quote commas in values")
            if cells:
                yield Row(where, dict(zip(header, cells, strict=True)))


def _parquet_rows(table: Path, needed: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            header = file.schema_arrow.names
            _check_columns(table, header, needed)
            rows = file.read(columns=[name for name in (*needed, "split") if name in header]).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None
    return (Row(f"{table}, row {number}", values) for number, values in enumerate(rows, start=1))


def _check_columns(table: Path, header: list[str], needed: tuple[str, ...]) -> None:
    for name in needed:
        if header.count(name) != 1:
            number = "more than one column" if name in header else "no column"
            columns = ", ".join(map(repr, header)) or "nothing"
            raise UserError(f"{table} has {number} {name!r}; its header must name it once, and holds {columns}")


def _record(root: Path, row: Row, with_split: bool) -> Record:
    path, label = (_needed(row, column) for column in ("path", "label"))
    check_file(root, path, row.where)
    check_format(path, row.where)
    if not is_image(path):
        raise UserError(f"{row.where}: {path} is no image by its extension; correct the row or leave it out")
    return Record(str(PurePosixPath(path)), label, _split(row) if with_split else None)


def _needed(row: Row, column: str) -> str:
    text = as_text(row.values[column])
    if not text:
        raise UserError(f"{row.where}: {column} is {row.values[column]!r}, not text or a whole number; fill it in")
    return text


def _split(row: Row) -> str:
    name = as_text(row.values["split"]) or ""
    split = split_named(name)
    if split is None:
        raise UserError(f"{row.where}: split is {name!r}; {did_you_mean(name.lower(), ('train', 'val', 'test'))}")
    return split


def _check_once(rows: list[Row], records: list[Record]) -> None:
    first: dict[str, str] = {}  # path -> the row that names it first
    for row, record in zip(rows, records, strict=True):
        other = first.setdefault(record.path, row.where)
        if other != row.where:
            raise UserError(f"{row.where} names {record.path} again, after {other}; leave one of the two")
