"""Images that a table lists: a CSV, Parquet or JSON file, or a folder as Hugging Face's imagefolder has it, where a
metadata.csv or metadata.parquet lies beside the images, or in train, val and test each."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from reprlib import repr as short
from typing import NamedTuple

from mmrl_core.data.foreign import check_format
from mmrl_core.data.known.files import Files, State, States, state_of
from mmrl_core.data.own import label_studio
from mmrl_core.data.own.records import (
    Gathered,
    Inside,
    Record,
    Records,
    as_text,
    check_name,
    did_you_mean,
    is_image,
    some,
    split_named,
)
from mmrl_core.data.own.table import Row, Wanted, each_row
from mmrl_core.data.source import IMAGE_EXTENSIONS
from mmrl_core.errors import UserError, refuse_all

METADATA = ("metadata.csv", "metadata.parquet")
SPLIT_LIKE = ("set", "subset", "partition", "phase")  # what else columns of splits are called


class Listing(NamedTuple):
    """A table, the folder below the root that its paths start at, and the split that this folder is."""

    table: Path
    below: str = ""
    split: str | None = None


class Entry(NamedTuple):
    """A row: the image's path below the root, its label, and its split as the data write it, "" for none."""

    where: str
    path: str
    label: str
    split: str
    state: State


def gather(table: Path, images: Path | None = None, columns: Mapping[str, str] = {}) -> Gathered:
    """The images that the rows name, below `images` or the table's own folder, by path; `columns` says what the table
    calls path, label and split.

    Raises UserError naming the rows whose path, label or split cannot be used.
    """
    root, listings = _listings(table, images)
    wanted = Wanted(("path", "label"), ("split", *SPLIT_LIKE, *label_studio.COLUMNS), columns)
    rows = [(listing, row) for listing in listings for row in each_row(listing.table, wanted)]
    entries, left_out = _entries(Inside(root), rows)
    _check_once(entries)
    splits, notes = _splits(table, entries)
    notes += [] if any(splits) else _unread_splits([row for _, row in rows])
    pairs = sorted(
        (Record(entry.path, entry.label, split), entry.state) for entry, split in zip(entries, splits, strict=True)
    )
    records, states = [record for record, _ in pairs], States()
    for _, state in pairs:
        states.add(state)
    tables = [listing.table for listing in listings]
    notes += [f"rows without a choice were left out: {len(left_out)}, the first {left_out[0]}"] if left_out else []
    return Gathered(
        str(table), Records.of(records), tables, Files(root), {}, lambda: notes, states, files_of_their_own=True
    )


def _entries(inside: Inside, rows: list[tuple[Listing, Row]]) -> tuple[list[Entry], list[str]]:
    """The images, and the rows that are left out. Raises UserError naming all rows that cannot be used."""
    entries: list[Entry] = []
    left_out: list[str] = []
    problems: list[str] = []
    for listing, row in rows:
        try:
            entry = _entry(inside, listing, row)
        except UserError as error:
            problems.append(str(error))
            continue
        entries.append(entry) if entry else left_out.append(row.where)
    refuse_all("rows", problems)
    return entries, left_out


def _unread_splits(rows: list[Row]) -> list[str]:
    """A note on a column that is not read and holds the words of splits."""
    for name in SPLIT_LIKE:
        words = {as_text(row.values.get(name)) or "" for row in rows}
        if len(words) > 1 and all(map(split_named, words)):
            return [f"the column {name} is not read; if it names the splits, say `columns: {{split: {name}}}`"]
    return []


def image_path(root: Path, row: Row, below: str = "", *, absent_ok: bool = False) -> str:
    """The path below `root` of the image that a row names by a path below the folder `below` of it.

    Raises UserError on a path that leaves the root, links followed, on one that is no image by its extension, and,
    unless `absent_ok`, on one that is not there.
    """
    return _image(Inside(root), row, below, absent_ok)[0]


def _image(inside: Inside, row: Row, below: str, absent_ok: bool = False) -> tuple[str, os.stat_result | None]:
    """The path, and what the system says of the file; None where it need not be there and is not."""
    root = inside.root
    value = _needed(row, "path")
    if "://" in value:
        raise UserError(
            f"{row.where}: {value[:100]} is a URL; copy the images here and give paths below {root / below}"
        )
    path = label_studio.path_below(root / below, _relative(root / below, value), row.where)
    check_name(path, row.where)
    path = with_extension(root, str(PurePosixPath(below, path)))
    found = inside.check(path, row.where) if not absent_ok or os.path.exists(root / path) else None
    check_format(path, row.where)
    if not is_image(path):
        raise UserError(f"{row.where}: {path} is no image by its extension; correct the row or leave it out")
    return path, found


def with_extension(root: Path, path: str) -> str:
    """The path, or that of the one image that is called so but for its extension, as tables of ids leave it out."""
    if is_image(path) or os.path.lexists(root / path):
        return path
    names = {extension: f"{path}.{extension}" for each in IMAGE_EXTENSIONS for extension in (each, each.upper())}
    found = {each.lower(): name for each, name in names.items() if os.path.lexists(root / name)}
    return next(iter(found.values())) if len(found) == 1 else path


def _relative(root: Path, path: str) -> str:
    """The path of what lies below the root, where it is given from the top."""
    return path[len(above) :] if path.startswith(above := os.path.join(os.path.abspath(root), "")) else path


def holds_metadata(folder: Path) -> bool:
    """Whether a folder is one of Hugging Face's: a table lies beside images in it, or in its train, val or test."""
    try:
        places = [listing.table.parent for listing in _listings(folder, None)[1]]
        return any(is_image(entry.name) for place in places for entry in place.iterdir())
    except (OSError, UserError):
        return False


def _listings(table: Path, images: Path | None) -> tuple[Path, list[Listing]]:
    """What the paths start at, and the tables."""
    if not table.is_dir():
        root = images or table.parent
        if not root.is_dir():
            raise UserError(f"the images folder {root} is not there; correct `images` or put it there")
        return root, [Listing(table)]
    if images:
        raise UserError(f"the folder {table} has its tables beside their images; leave `images` out")
    try:
        folders = sorted(entry.name for entry in table.iterdir() if entry.is_dir() and split_named(entry.name))
    except OSError as error:
        raise UserError(f"cannot list the folder {table} ({error.strerror}); make it readable") from None
    places = [Listing(table), *(Listing(table / name, name, split_named(name)) for name in folders)]
    listings = [place._replace(table=place.table / name) for place in places for name in METADATA]
    listings = [listing for listing in listings if listing.table.exists()]
    if not listings:
        raise UserError(f"the folder {table} holds no {' or '.join(METADATA)}, itself or in train, val and test")
    return table, listings


def _entry(inside: Inside, listing: Listing, row: Row) -> Entry | None:
    """None where the row is of an annotation without a choice."""
    if label_studio.is_left_out(row.values, as_text(row.values["label"])):
        return None
    label = label_studio.choice(_needed(row, "label"), row.where)
    split = as_text(row.values.get("split")) or ""
    if listing.split and split_named(split or listing.split) != listing.split:
        raise UserError(f"{row.where}: split is {split!r} in the folder {listing.below}; correct the row or move it")
    path, found = _image(inside, row, listing.below)
    assert found is not None  # it must be there
    return Entry(row.where, path, label, split or listing.split or "", state_of(found))


def _needed(row: Row, column: str) -> str:
    text = as_text(row.values[column])
    if not text:
        value = short(row.values[column])
        raise UserError(f"{row.where}: {column} is {value}, not text or a whole number; fill it in")
    return text


def _splits(table: Path, entries: list[Entry]) -> tuple[list[str | None], list[str]]:
    """The split of each entry: the one it names, else the one that its path's folder is called by; and notes."""
    if any(entry.split for entry in entries):
        return [_split(entry) for entry in entries], []
    folders = [PurePosixPath(entry.path).parent for entry in entries]
    common = len(PurePosixPath(os.path.commonpath(folders)).parts) if folders else 0
    first = ["".join(folder.parts[common : common + 1]) for folder in folders]
    splits = [split_named(folder) for folder in first]
    if not {"train", "test"} <= set(splits):
        return [None] * len(entries), []
    if None in splits:
        others = sorted({folder for folder, split in zip(first, splits, strict=True) if split is None})
        raise UserError(
            f"{table} has images in {some(others)} beside train and test; add a column split, or leave them out"
        )
    return splits, [f"the splits are the folders that the paths name: {', '.join(sorted(set(first)))}"]


def _split(entry: Entry) -> str:
    split = split_named(entry.split)
    if split is None:
        known = did_you_mean(entry.split.lower(), ("train", "val", "test"))
        raise UserError(f"{entry.where}: split is {entry.split!r}; {known}")
    return split


def _check_once(entries: list[Entry]) -> None:
    first: dict[str, str] = {}  # path -> the row that names it first
    for entry in entries:
        other = first.setdefault(entry.path, entry.where)
        if other != entry.where:
            raise UserError(f"{entry.where} names {entry.path} again, after {other}; leave one of the two")
