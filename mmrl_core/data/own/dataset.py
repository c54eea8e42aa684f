"""Datasets of the user's own: an image folder, a table of paths, or WebDataset shards."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from mmrl_core.data.own import folder, listed, tars
from mmrl_core.data.own.class_names import bare_numbers, base_labels, ordered_labels, readable_names
from mmrl_core.data.own.findings import Placed, findings, same_images
from mmrl_core.data.own.records import Gathered, Record
from mmrl_core.data.own.settings import ColumnsSection, OwnSection
from mmrl_core.data.own.splits import notes_on_splits, splits_of
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item
from mmrl_core.errors import UserError, refuse_all
from mmrl_core.files import canonical_json

READERS = 8  # threads that read and hash images


def open_source(key: str, spec: OwnSection) -> Source:
    """The dataset as params.yaml describes it under data.own. Every image is read once, to know equal ones.

    Items lie by label, then path; labels count the classes in the order of their folders or labels. Raises UserError
    naming what is missing or wrong.
    """
    gathered = _gather(spec)
    labels = ordered_labels(gathered)
    names = readable_names(gathered, labels, _path(spec.classes))
    base = base_labels(spec.base_classes, labels, names, f"data.own.{key}.base_classes")
    items = _items(gathered, labels, names)
    digests = _digests(gathered)
    splits = splits_of(gathered.where, gathered.records, digests, spec)
    placed = [Placed(item.path, item.class_name, *pair) for item, *pair in zip(items, splits, digests, strict=True)]
    refuse_all("classes", [f"{gathered.where}: {problem}" for problem in same_images(placed)])

    def of_split(name: str) -> list[Item]:
        return sorted((item for item, split in zip(items, splits, strict=True) if split == name), key=_by_label)

    lists = of_split("train"), of_split("val"), of_split("test")
    notes = [*gathered.notes, *notes_on_splits(gathered.records), *bare_numbers(names), *findings(placed)]
    return Source(key, [spec.template], names, *lists, reader=gathered.reader, base=base, notes=notes)


def fingerprint(key: str, spec: OwnSection) -> dict[str, Any]:
    """As catalog.fingerprint: settings, number of images and classes, and path, size and time of every file."""
    gathered = _gather(spec)
    files = sorted({*gathered.files, *filter(None, [_path(spec.classes)])})
    facts = {
        "dataset": key,
        "spec": spec.model_dump(exclude={"flips"} if spec.columns != ColumnsSection() else {"columns", "flips"}),
        "files_sha256": hashlib.sha256(json.dumps([_stat(file) for file in files]).encode()).hexdigest(),
        "counts": {"images": len(gathered.records), "classes": len(ordered_labels(gathered)), "files": len(files)},
    }
    return {**facts, "digest": hashlib.sha256(canonical_json(facts)).hexdigest()}


def _gather(spec: OwnSection) -> Gathered:
    if spec.shards:
        return tars.gather(spec.shards)
    images = _path(spec.images)
    if spec.table:
        return listed.gather(Path(spec.table), images, spec.columns.model_dump(exclude_none=True))
    assert images  # OwnSection names one of the three
    return folder.gather(images)


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


def _items(gathered: Gathered, labels: list[str], names: list[str]) -> list[Item]:
    number_of = {label: number for number, label in enumerate(labels)}
    numbers = [number_of[record.label] for record in gathered.records]
    return [Item(record.path, number, names[number]) for record, number in zip(gathered.records, numbers, strict=True)]


def _by_label(item: Item) -> tuple[int, str]:
    return item.label, item.path


def _digests(gathered: Gathered) -> list[str]:
    """The hash of each image's bytes. Raises UserError naming all that cannot be read."""
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(partial(_digest, gathered), gathered.records))
    refuse_all("files", [str(digest) for digest in digests if isinstance(digest, UserError)])
    return [digest for digest in digests if isinstance(digest, str)]


def _digest(gathered: Gathered, record: Record) -> str | UserError:
    try:
        return hashlib.sha256(gathered.reader(record)).hexdigest()
    except UserError as error:
        return error


def _stat(path: Path) -> list[str | int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"cannot find {path} ({error.strerror}); correct its path or put it there") from None
    return [str(path), stat.st_size, stat.st_mtime_ns]
