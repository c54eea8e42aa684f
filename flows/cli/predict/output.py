"""What `mmrl predict` says of every image: lines for people, one JSON object, or a table."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from flows.project.outputs import atomic_output, check_out_path
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.csv import CSVWriter
    from pyarrow.parquet import ParquetWriter

    from mmrl_core.predict import Prediction

NONE_OF_THESE = "none of these"
TOP = 5  # classes of a line
ROWS = 1024  # rows of a table that are written at once

Row = dict[str, Any]
Put = Callable[[Row], None]


def describe(path: Path, prediction: "Prediction | None", threshold: float | None) -> Row:
    """One image's row. For an image that could not be read all but the path is None. With a threshold the row also has
    `abstained`: whether the confidence is below it."""
    fields = ("label", "probability", "probabilities", "confidence")
    row: Row = {"path": os.fsencode(path).decode(errors="backslashreplace")}
    row |= prediction._asdict() if prediction else dict.fromkeys(fields)
    if threshold is None:
        return row
    from mmrl_core.evaluation.abstain import is_below

    abstained = is_below(prediction.confidence, threshold) if prediction else None
    if abstained:
        row |= {"label": NONE_OF_THESE, "probability": None}
    return row | {"abstained": abstained}


@contextmanager
def lines() -> Iterator[Put]:
    """Print a line an image, as it comes."""
    yield lambda row: print(f"{row['path']}: {_line(row)}")


def _line(row: Row) -> str:
    if row["label"] is None:
        return "cannot be read"
    if row.get("abstained"):
        return f"{NONE_OF_THESE} (confidence {row['confidence']:.3f})"
    best = sorted(row["probabilities"].items(), key=lambda pair: -pair[1])[:TOP]
    return ", ".join(f"{name} {probability:.1%}" for name, probability in best)


@contextmanager
def json_object() -> Iterator[Put]:
    """Print one object {path: row} at the end: kept in a file till then, so that a failure prints none of it."""
    with TemporaryFile("w+", encoding="utf-8") as file:

        def put(row: Row) -> None:
            value = {name: value for name, value in row.items() if name != "path"}
            file.write(f"{', ' if file.tell() else '{'}{json.dumps(row['path'])}: {json.dumps(value)}")

        yield put
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout)
        print("}")


def check_table(out: Path) -> None:
    """Raise UserError unless a table can be written there."""
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {out} names no table; end it in .csv or .parquet")
    check_out_path(out, changed=True)


@contextmanager
def table(out: Path, abstained: bool, class_names: list[str]) -> Iterator[Put]:
    """Write a CSV or Parquet file, which appears when it is whole, with one more column for each of `class_names`."""
    import pyarrow

    schema = _schema(abstained, class_names)
    with atomic_output(out) as path, _writer(path, schema) as writer:
        rows: list[Row] = []

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            rows.clear()

        def put(row: Row) -> None:
            known = row["probabilities"] or {}
            rows.append(row | {_column(name): known.get(name) for name in class_names})
            if len(rows) == ROWS:
                flush()

        yield put
        flush()


def _schema(abstained: bool, class_names: list[str]) -> "Schema":
    import pyarrow

    columns = {"path": pyarrow.string(), "label": pyarrow.string(), "probability": pyarrow.float64()}
    columns |= {"abstained": pyarrow.bool_()} if abstained else {}
    return pyarrow.schema(columns | {_column(name): pyarrow.float64() for name in class_names})


def _column(class_name: str) -> str:
    return f"probability:{class_name}"  # no class can be called like another column


def _writer(path: Path, schema: "Schema") -> "CSVWriter | ParquetWriter":
    if path.suffix == ".csv":
        from pyarrow.csv import CSVWriter

        return CSVWriter(path, schema)
    from pyarrow.parquet import ParquetWriter

    return ParquetWriter(path, schema)
