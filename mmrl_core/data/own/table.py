"""Rows of a table, CSV, Parquet or a JSON export of Label Studio: the columns that are asked for, each found by the
names that it usually has."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from mmrl_core.data.own.label_studio import rows_of
from mmrl_core.data.own.records import did_you_mean
from mmrl_core.errors import UserError
from mmrl_core.parsing import parse_json

KINDS = (".csv", ".parquet", ".json")
# What a column may be called besides by what it is, in upper or lower case.
ALSO = {"path": ("image", "file_name", "filename", "file"), "label": ("choice", "class", "category")}
BY_SETTING = "columns: {{{column}: {name}}}"  # how `columns` of data.own says which column is meant


class Row(NamedTuple):
    """A row's values by what was asked for, and what to call it in a message."""

    where: str
    values: dict[str, Any]


class Wanted(NamedTuple):
    """Columns to read: those `needed`, those read where they are there, the names of those that the user has `named`,
    and how a message tells the user to name one."""

    needed: Sequence[str]
    optional: Sequence[str] = ()
    named: Mapping[str, str] = {}
    by: str = BY_SETTING


def read_rows(table: Path, needed: Sequence[str]) -> list[Row]:
    """All rows of a table, as `each_row` gives them."""
    return list(each_row(table, Wanted(needed)))


def each_row(table: Path, wanted: Wanted) -> Iterator[Row]:
    """The rows of a table, one at a time; of a CSV or Parquet file only a part is in memory at once.

    Raises UserError when it cannot be read, has no rows, lacks a column that is needed, or has two that may be it.
    """
    if table.suffix.lower() not in KINDS:
        raise UserError(f"{table} is no table that can be read; give one of {', '.join(KINDS)}")
    if not table.is_file():
        raise UserError(f"the table {table} is not there; correct its path or put it there")
    rows = {".csv": _csv_rows, ".parquet": _parquet_rows, ".json": _json_rows}[table.suffix.lower()](table, wanted)
    row = None
    try:
        for row in rows:
            yield row
    except (OSError, ValueError, OverflowError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"cannot read the table {table} ({error}); save it again, a CSV as UTF-8") from None
    if row is None:
        raise UserError(f"the table {table} has no rows; add some")


def _csv_rows(table: Path, wanted: Wanted) -> Iterator[Row]:
    with open(table, encoding="utf-8-sig", newline="") as file:  # Excel begins UTF-8 with a byte order mark
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if len(header) == 1 and (mark := next((one for one in ";\t" if one in header[0]), None)):
            raise UserError(f"{table} has its columns apart by {mark!r}; save it with commas between them")
        places = {column: header.index(name) for column, name in _columns(table, header, wanted).items()}
        for cells in reader:
            where = f"{table}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise UserError(f"{where} has {len(cells)} columns, the header {len(header)}; quote commas in values")
            if cells:
                yield Row(where, {column: cells[place] for column, place in places.items()})


def _parquet_rows(table: Path, wanted: Wanted) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    numbers = count(1)
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            columns = _columns(table, file.schema_arrow.names, wanted)
            for name in columns.values():
                _check_plain(table, name, file.schema_arrow.field(name).type)
            for batch in file.iter_batches(columns=list(columns.values())):
                values = [batch.column(name).to_pylist() for name in columns.values()]
                for row in zip(*values, strict=True):
                    yield Row(f"{table}, row {next(numbers)}", dict(zip(columns, row, strict=True)))
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


def _json_rows(table: Path, wanted: Wanted) -> Iterator[Row]:
    rows = rows_of(parse_json(table.read_bytes()), str(table))
    header = list(dict.fromkeys(name for row in rows for name in row))
    columns = _columns(table, header, wanted) if rows else {}
    for number, row in enumerate(rows, start=1):
        yield Row(f"{table}, row {number}", {column: row.get(name) for column, name in columns.items()})


def _check_plain(table: Path, name: str, kind: Any) -> None:
    import pyarrow

    if pyarrow.types.is_nested(kind):  # such as the bytes of images, as Hugging Face keeps them in Parquet
        raise UserError(f"{table}: a value of its column {name!r} has parts; text is needed, such as an image's path")


def _columns(table: Path, header: list[str], wanted: Wanted) -> dict[str, str]:
    """The names in the header of the columns that are wanted and there, by what they are."""
    chosen = {column: _name_of(table, header, column, wanted) for column in (*wanted.needed, *wanted.optional)}
    return {column: name for column, name in chosen.items() if name is not None}


def _name_of(table: Path, header: list[str], column: str, wanted: Wanted) -> str | None:
    """The one name in the header that a column has; None for an optional one that is not there."""
    named, usual = wanted.named.get(column), (column, *ALSO.get(column, ()))
    names = [name for name in header if (name == named if named else name.lower() in usual)]
    if len(names) == 1:
        return names[0]
    if names:
        raise UserError(f"{table}: {_several(column, names, wanted)}")
    if named:
        raise UserError(f"{table} has no column {named!r}; {did_you_mean(named, header)}")
    if column in wanted.needed:
        holds = ", ".join(map(repr, header)) or "nothing"
        raise UserError(f"{table} has no column {column!r}; its header holds {holds}; {_how(usual, wanted)}")
    return None


def _several(column: str, names: list[str], wanted: Wanted) -> str:
    if len(set(names)) < len(names):
        return f"its header names more than one column {names[0]!r}; rename one"
    by = wanted.by.format(column=column, name=names[0])
    return f"each of its columns {' and '.join(map(repr, names))} may be the {column}; say which, such as `{by}`"


def _how(usual: Sequence[str], wanted: Wanted) -> str:
    if len(usual) == 1:
        return f"call one {usual[0]}"
    by = wanted.by.format(column=usual[0], name="NAME")
    return f"call one {', '.join(usual[:-1])} or {usual[-1]}, or say which it is: `{by}`"
