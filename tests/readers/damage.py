"""Strategies that damage something whole: its bytes, the values of a JSON text, the columns of a table."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

Inputs = Callable[[bytes], st.SearchStrategy[bytes]]


class Reader(NamedTuple):
    """`make` fills an empty folder with something whole, of which `file` is what gets damaged, as `inputs` says; `read`
    is given the folder then."""

    name: str
    make: Callable[[Path], object]
    file: str
    inputs: Inputs
    read: Callable[[Path], object]
    share: float = 1.0  # of the usual number of inputs, of a slow one
    is_dear: bool = False  # made and read in seconds: in the endurance tests alone


def inside(read: Callable[[], object]) -> Callable[[Path], object]:
    """With the folder as the working directory."""

    def run(folder: Path) -> None:
        with contextlib.chdir(folder):
            read()

    return run


DEEP = "[" * 500 + "]" * 500
NO_END = "[" * 100_000
LEFT_OUT = ""  # the entry goes
# As JSON texts. Strings are what `str.isdigit`, `int`, `Path` and an encoder stumble over.
ODD_VALUES = [
    LEFT_OUT, "null", "true", "false", "0", "-1", "1.5", "1e400", "-1e400", "NaN", "9" * 19, "9" * 400, "9" * 5000,
    "1e308", "-9223372036854775809", '""', '" "', '"x"', '"\\u00b2"', '"\\u0663"', '"\\ud800"', '"\\udc80.png"',
    '"\\u0000"', '"two\\nlines"', '"../x"', '"/"', '"{}"', f'"{"9" * 5000}"', '"2026-01-01"', "[]", "{}", '["x"]',
    "[null]", "[[1]]", '{"x": 1}', '{"": null}', DEEP, NO_END,
]  # fmt: skip
ODD_BYTES = [
    b"", b"\0", b"\n", b"\r", b",", b'"', b"'", b" ", b"-", b"[", b"{", b":", b"../", b"/", b"%", b"*", b"&a", b"NaN",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x80", "²".encode(), "٣".encode(), "\u2028".encode(),
    b"\xff" * 8, b"\0" * 512, b"9" * 5000, b"1e999",
]  # fmt: skip
ODD_COLUMNS = [
    pyarrow.array(["x", "y"]),
    pyarrow.array(["x", None]),
    pyarrow.array(["²", "9" * 5000]),
    pyarrow.array([b"x", b"\xff"]),
    pyarrow.array([0, 1]),
    pyarrow.array([0, None]),
    pyarrow.array([2**63, 0], pyarrow.uint64()),
    pyarrow.array([0.5, float("nan")]),
    pyarrow.array([float("inf"), 1e300]),
    pyarrow.array([True, False]),
    pyarrow.array([None, None]),
    pyarrow.array([["x"], []]),
    pyarrow.array([{"x": 1}, None]),
    pyarrow.array([2**62, -(2**62)], pyarrow.timestamp("us")),
    pyarrow.array([2**31 - 1, 0], pyarrow.date32()),
    pyarrow.array([2**62, 1], pyarrow.duration("s")),
    pyarrow.array(["x", "y"]).dictionary_encode(),
    pyarrow.array(["x", "y"], pyarrow.large_string()),
    pyarrow.array(["\0", "a\nb"]),
]


def damaged_bytes(whole: bytes) -> st.SearchStrategy[bytes]:
    """Up to four times something is cut out, and something odd put there; rarely all of it is other bytes."""
    edit = st.tuples(
        st.integers(0, len(whole)),
        st.sampled_from([0, 0, 1, 2, 7, 64, 10**6]),
        st.one_of(st.sampled_from(ODD_BYTES), st.binary(max_size=6)),
    )
    edited = st.lists(edit, min_size=1, max_size=4).map(lambda edits: _edited(whole, edits))
    return st.one_of(edited, edited, edited, st.binary(max_size=200))


def _edited(whole: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, cut, put in edits:
        whole = whole[:place] + put + whole[place + cut :]
    return whole


def damaged_json(whole: bytes) -> st.SearchStrategy[bytes]:
    """One or two entries are another value, or gone; or damaged as bytes."""
    return st.one_of(odd_json(whole), odd_json(whole), odd_json(whole), damaged_bytes(whole))


def odd_json(whole: bytes) -> st.SearchStrategy[bytes]:
    document = json.loads(whole)
    places = st.sampled_from(list(_places(document)))
    edits = st.lists(st.tuples(places, st.sampled_from(ODD_VALUES)), min_size=1, max_size=2)
    return edits.map(lambda edits: _written(document, dict(edits), ()).encode())


def damaged_lines(whole: bytes) -> st.SearchStrategy[bytes]:
    """Lines of JSON: the first is damaged, the others follow."""
    first, _, rest = whole.partition(b"\n")
    return st.one_of(damaged_json(first).map(lambda line: line + b"\n" + rest), damaged_bytes(whole))


def _places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in entries:
        yield from _places(child, (*at, key))


def _written(value: Any, edits: dict[tuple, str], at: tuple) -> str:
    if at in edits:
        return edits[at]
    if isinstance(value, dict):
        entries = [(json.dumps(key) + ": ", _written(child, edits, (*at, key))) for key, child in value.items()]
        return "{" + ", ".join(key + child for key, child in entries if child != LEFT_OUT) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(filter(None, (_written(child, edits, (*at, i)) for i, child in enumerate(value)))) + "]"
    return json.dumps(value)


def damaged_parquet(whole: bytes) -> st.SearchStrategy[bytes]:
    """One or two columns are of another type, or have values that are out of range; or it is damaged as bytes."""
    table = pyarrow.parquet.read_table(io.BytesIO(whole)).slice(0, 2)
    edits = st.lists(st.tuples(st.sampled_from(table.column_names), st.sampled_from(range(len(ODD_COLUMNS)))),
                     min_size=1, max_size=2)  # fmt: skip
    return st.one_of(edits.map(lambda edits: _with_columns(table, dict(edits))), damaged_bytes(whole))


def _with_columns(table: pyarrow.Table, odd: dict[str, int]) -> bytes:
    columns = {name: ODD_COLUMNS[odd[name]] if name in odd else table[name] for name in table.column_names}
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), written)
    return written.getvalue()
