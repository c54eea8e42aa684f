"""Tables for a terminal of 120 columns, printed row by row as measurements come in."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

NEXT_LINE = "\n      "


class Column(NamedTuple):
    """A heading, the row's key, the value's format specification (`s`: text, to the left), the width."""

    heading: str
    key: str
    form: str = "s"
    width: int = 8

    def cell(self, value) -> str:
        """The value in the column's width, a dash for None."""
        return self.align("-" if value is None else format(value, self.form))

    def align(self, text: str) -> str:
        return f"  {text:<{self.width - 2}}" if self.form == "s" else f"{text:>{self.width}}"


class Table:
    """Prints its title and heading at once, then a line for every row; a row's `note` follows it."""

    def __init__(self, title: str, columns: Sequence[Column]):
        self.columns, self.rows = columns, []
        print(f"\n{title}\n{''.join(column.align(column.heading) for column in columns)}", flush=True)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        cells = "".join(column.cell(row.get(column.key)) for column in self.columns)
        note = row.get("note") or ""
        print(f"{cells}{'  ' if len(note) < 3 else NEXT_LINE}{note}".rstrip(), flush=True)

    def extend(self, rows: Iterable[dict]) -> None:
        for row in rows:
            self.add(row)


def notes(*lines: str) -> None:
    """What a table's columns mean, below it."""
    for line in lines:
        print(f"  {line}", flush=True)
