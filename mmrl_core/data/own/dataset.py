"""Datasets of the user's own: an image folder, a table of paths, or WebDataset shards."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrl_core.data.benchmark.coop import SPLITS, rows_digest
from mmrl_core.data.known.files import Files
from mmrl_core.data.own import folder, listed, tars
from mmrl_core.data.own.class_names import bare_numbers, base_labels, ordered_labels, readable_names
from mmrl_core.data.own.findings import Placed, findings, repeats, same_images
from mmrl_core.data.own.records import Gathered
from mmrl_core.data.own.settings import ColumnsSection, OwnSection
from mmrl_core.data.own.splits import notes_on_splits, splits_of
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item
from mmrl_core.errors import UserError, refuse_all
from mmrl_core.files import canonical_json

if TYPE_CHECKING:
    from mmrl_core.data.known.reading import Known
    from mmrl_core.data.known.store import Store

Report = Callable[[int, int], None]


class Opened(NamedTuple):
    """A dataset, and what is wrong with images of it by their paths, where they were decoded."""

    source: Source
    broken: dict[str, str]


def open_source(key: str, spec: OwnSection, store: "Store | None" = None, report: Report | None = None) -> Source:
    """The dataset as params.yaml describes it under data.own. Every image is read once, to know equal ones; those that
    the `store` knows as they are now are not read.

    Items lie by label, then path; labels count the classes in the order of their folders or labels. Calls `report(done,
    total)` after every image. Raises UserError naming what is missing or wrong.
    """
    return _opened(key, spec, store, report, None).source


def open_checked(key: str, spec: OwnSection, store: "Store | None" = None, report: Report | None = None) -> Opened:
    """The same, every image decoded as it is read."""
    return _opened(key, spec, store, report, key)


def _opened(key: str, spec: OwnSection, store: "Store | None", report: Report | None, decoded: str | None) -> Opened:
    from mmrl_core.data.known.reading import Known  # which a fingerprint does without

    gathered = _gather(spec)
    labels = ordered_labels(gathered)
    names = readable_names(gathered, labels, _path(spec.classes))
    base = base_labels(spec.base_classes, labels, names, f"data.own.{key}.base_classes")
    known = Known(gathered.reader, store)
    digests, broken = _examined(gathered, known, decoded, report)
    splits = splits_of(gathered.where, gathered.records, digests, spec)
    items = _items(gathered, labels, names)
    placed = Counter((item.class_name, split) for item, split in zip(items, splits, strict=True))
    images = zip(items, splits, digests, strict=True)
    repeated = repeats((Placed(item.path, item.class_name, split, sha) for item, split, sha in images), digests)
    refuse_all("classes", [f"{gathered.where}: {problem}" for problem in same_images(placed, repeated)])
    lists = _by_split(items, splits)
    notes = [*gathered.notes(), *notes_on_splits(gathered.records), *bare_numbers(names), *findings(placed, repeated)]
    reader = gathered.reader
    stays = reader if isinstance(reader, tars.Members) and not spec.copy_images else None
    return Opened(
        Source(key, [spec.template], names, *lists, reader=reader, base=base, notes=notes, known=known, tars=stays),
        broken,
    )


def fingerprint(key: str, spec: OwnSection) -> dict[str, Any]:
    """As catalog.fingerprint: settings, number of images and classes, and path, size and time of every file."""
    gathered = _gather(spec)
    files_sha256, files = rows_digest(_files(gathered, _path(spec.classes)))
    facts = {
        "dataset": key,
        "spec": spec.model_dump(exclude=_of_no_image(spec)),
        "files_sha256": files_sha256,
        "counts": {"images": len(gathered.records), "classes": len(ordered_labels(gathered)), "files": files},
    }
    return {**facts, "digest": hashlib.sha256(canonical_json(facts)).hexdigest()}


def _of_no_image(spec: OwnSection) -> set[str]:
    """Settings that change nothing of what is prepared."""
    changing = {"columns": spec.columns != ColumnsSection(), "copy_images": spec.copy_images}
    return {"flips", *(name for name, changes in changing.items() if not changes)}


def _files(gathered: Gathered, classes: Path | None) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of each file, folder by folder."""
    others = sorted({*gathered.files, *filter(None, [classes])})
    if not others:
        return _images(gathered)
    rows = heapq.merge(map(_stat, others), _images(gathered), key=lambda row: _part_by_part(row[0]))
    return (row for row, _ in groupby(rows))  # a list of the images may be that of the classes as well


def _images(gathered: Gathered) -> Iterator[tuple[str, int, int]]:
    if not gathered.files_of_their_own:
        return
    assert isinstance(gathered.reader, Files)
    above, (sizes, times, _) = str(gathered.reader.root / "x")[:-1], gathered.states.columns
    paths = gathered.records.paths
    for place in sorted(range(len(paths)), key=[_part_by_part(path) for path in paths].__getitem__):
        yield above + paths[place], sizes[place], times[place]


def _part_by_part(path: str) -> str:
    """What sorts paths as pathlib does: a folder's files before those of a folder whose name begins alike."""
    return path.replace("/", "\0")


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
    numbers = [number_of[label] for label in gathered.records.labels]
    return [Item(path, number, names[number]) for path, number in zip(gathered.records.paths, numbers, strict=True)]


def _by_split(items: list[Item], splits: list[str]) -> tuple[list[Item], list[Item], list[Item]]:
    """Train, val and test, by label and, as they come, by path."""
    lists: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for item, split in zip(items, splits, strict=True):
        lists[split].append(item)
    for members in lists.values():
        members.sort(key=lambda item: item.label)
    return lists["train"], lists["val"], lists["test"]


def _examined(
    gathered: Gathered, known: "Known", decoded: str | None, report: Report | None
) -> tuple[list[bytes], dict[str, str]]:
    """The digest of each image's bytes, and what is wrong with images that are `decoded` by that name of the dataset.
    Raises UserError naming all that cannot be read."""
    paths = gathered.records.paths
    digests, broken, unread = list[bytes](), dict[str, str](), list[str]()
    for number, found in enumerate(known.examine(paths, gathered.states, decoded), start=1):
        if isinstance(found, UserError):
            unread.append(str(found))
        else:
            digests.append(found.sha256)
            broken |= {paths[number - 1]: found.problem} if found.problem else {}
        if report:
            report(number, len(paths))
    refuse_all("files", unread)
    return digests, broken


def _stat(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"cannot find {path} ({error.strerror}); correct its path or put it there") from None
    return str(path), stat.st_size, stat.st_mtime_ns
