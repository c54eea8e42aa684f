"""Prepared data: WebDataset shards beside a manifest, byte-identical on every run. Images that lie in tar files of the
user's own stay there: the pool lists them.

Base and novel classes lie in separate shards, so a reader of base classes never opens a novel image.
"""

import hashlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NotRequired, cast

from typing_extensions import TypedDict

from mmrl_core.data.images import check
from mmrl_core.data.own.places import line, listed
from mmrl_core.data.parallel import CHUNK, map_in_order
from mmrl_core.data.source import Source, extension_of, told_apart
from mmrl_core.data.splits import Item, base_novel, sample_few_shot
from mmrl_core.errors import Damaged, UserError, refuse_all
from mmrl_core.files import canonical_json, read_json, sha256_file, write_json, wrong_entry
from mmrl_core.parsing import parse_json
from mmrl_core.protocols import HALVES, Half, LabelsByHalf

if TYPE_CHECKING:
    from mmrl_core.data.known.store import Row
    from mmrl_core.data.own.tars import Members

SHARD_ITEMS = 1000
TAR_END, LARGEST = 2 * tarfile.BLOCKSIZE, 8**11 - 1  # bytes: of zeros at a tar's end; of a member
MANIFEST = "manifest.json"
KEYS = ("templates", "class_names", "base", "novel", "counts", "shards")  # of a manifest; all that is read of it

Report = Callable[[int, int], None]
Part = list[tuple[int, Item, "Row | None"]]  # the numbers of items, the items, and what is known of each


class ShardEntry(TypedDict):
    """What a manifest says of one shard; `count` is its number of examples."""

    file: str
    split: str
    half: Half
    count: int
    sha256: str


class Selection(TypedDict):
    """Which items a prepared folder holds: all val and test items, or a few-shot sample, which has the other keys."""

    kind: Literal["pool", "few_shot"]
    shots: NotRequired[int]
    seed: NotRequired[int]
    items: NotRequired[dict[str, list[str]]]  # paths by split, in sampling order
    short_classes: NotRequired[dict[str, int]]  # number of train items, of the classes that have fewer than `shots`


class Manifest(LabelsByHalf, Selection):
    """What manifest.json says of a prepared folder."""

    dataset: str
    templates: list[str]
    class_names: list[str]  # by label
    notes: list[str]  # what the user should know of the data
    counts: dict[str, int]  # number of items by split
    shards: list[ShardEntry]
    tars: NotRequired[str]  # the folder of the user's own tar files that a pool lists
    digest: str  # sha256 of all but `tars`: a folder may be moved


@dataclass(frozen=True)
class Example:
    """One prepared image: its key in the shard, and its path, label and class name in the source's own terms."""

    key: str
    path: str
    label: int
    class_name: str
    image: bytes  # encoded


def write_pool(source: Source, out: Path, report: Report | None = None, *, n_base: int | None = None) -> Manifest:
    """Write all val and test items into the empty folder `out`; returns the manifest written there. Of a source whose
    images stay in tar files it is written where each lies.

    The first `n_base` classes (by default half of them) are base. Calls `report(done, total)` after every item. Raises
    UserError naming the images that cannot be decoded.
    """
    chosen = {split: range(len(source.items(split))) for split in ("val", "test")}
    return _write(source, chosen, {"kind": "pool"}, Path(out), report, n_base)


def write_few_shot(
    source: Source, shots: int, seed: int, out: Path, report: Report | None = None, *, n_base: int | None = None
) -> Manifest:
    """Write the few-shot train and val items of (shots, seed) into the empty folder `out`; returns the manifest.

    Reports and raises as `write_pool` does; raises UserError when shots < 1.
    """
    train, val = sample_few_shot(source.train, shots, seed, source.val)
    chosen = {"train": train, "val": val}
    selection: Selection = {
        "kind": "few_shot",
        "shots": shots,
        "seed": seed,
        "items": {split: [source.items(split)[index].path for index in chosen[split]] for split in chosen},
        "short_classes": _short_classes(source, shots),
    }
    return _write(replace(source, tars=None), chosen, selection, Path(out), report, n_base)


def _short_classes(source: Source, shots: int) -> dict[str, int]:
    """Class name -> number of train items, for the classes that have fewer than `shots`."""
    counts = Counter(item.label for item in source.train)
    names = told_apart(source.class_names)
    return {name: counts[label] for label, name in enumerate(names) if counts[label] < shots}


def _write(
    source: Source, chosen: Mapping[str, Sequence[int]], selection: Selection, out: Path, report: Report | None,
    n_base: int | None,
) -> Manifest:  # fmt: skip
    base, novel = halves_of(source, n_base)
    counts = {split: len(indices) for split, indices in chosen.items()}
    tick, problems = _ticker(sum(counts.values()), report), list[str]()
    shards: list[ShardEntry] = []
    try:
        for split, indices in chosen.items():
            for half, labels in zip(HALVES, (set(base), set(novel)), strict=True):
                members = [index for index in indices if source.items(split)[index].label in labels]
                shards += _write_shards(source, split, half, members, out, tick, problems)
    finally:
        if source.known:
            source.known.flush()
    refuse_all("images cannot be used", problems)
    manifest: Manifest = {
        "dataset": source.key, "templates": source.templates, "class_names": source.class_names,
        "base": base, "novel": novel, "notes": source.notes, **selection, "counts": counts, "shards": shards,
        "digest": "",
    }  # fmt: skip
    if source.tars:
        manifest["tars"] = str(source.tars.root)
    manifest["digest"] = _digest(manifest)
    write_json(out / MANIFEST, manifest)
    return manifest


def halves_of(source: Source, n_base: int | None) -> tuple[list[int], list[int]]:
    """The labels of the base and of the novel classes: those that the source names, else `base_novel`'s."""
    labels = range(len(source.class_names))
    if source.base is None:
        return base_novel(labels, n_base)
    return sorted(source.base), sorted(set(labels) - set(source.base))


def _ticker(total: int, report: Report | None) -> Callable[[], None]:
    done = count(1)
    return (lambda: report(next(done), total)) if report else (lambda: None)


def _write_shards(
    source: Source, split: str, half: Half, indices: Sequence[int], out: Path, tick: Callable[[], None],
    problems: list[str],
) -> list[ShardEntry]:  # fmt: skip
    """Write the items at `indices`, in that order; returns one manifest entry a shard, none for no items. Images that
    cannot be used become `problems`."""
    entries: list[ShardEntry] = []
    for number, start in enumerate(range(0, len(indices), SHARD_ITEMS)):
        members = indices[start : start + SHARD_ITEMS]
        name = f"{split}-{half}-{number:06d}.{'jsonl' if source.tars else 'tar'}"
        with open(out / name, "xb") as file:
            parts = _parts(source, split, members)
            made = map_in_order(partial(_samples, source, split), parts, size=1, small=_is_small)
            for sample in chain.from_iterable(made):
                if isinstance(sample, UserError):
                    problems.append(str(sample))
                elif source.tars:
                    file.write(_line(source.tars, sample))
                else:
                    _add(file, sample)
                tick()
            if not source.tars:
                _end(file)
        sha256 = sha256_file(out / name)
        entries.append({"file": name, "split": split, "half": half, "count": len(members), "sha256": sha256})
    return entries


def _add(tar: BinaryIO, sample: dict[str, Any]) -> None:
    """What webdataset.TarWriter writes; nothing in it differs between two runs."""
    for extension in sorted(sample.keys() - {"__key__"}):
        content = sample[extension]
        tar.write(_header(f"{sample['__key__']}.{extension}", len(content)))
        tar.write(content)
        tar.write(bytes(-len(content) % tarfile.BLOCKSIZE))


def _end(tar: BinaryIO) -> None:
    tar.write(bytes(-(tar.tell() + TAR_END) % tarfile.RECORDSIZE + TAR_END))


def _line(tars: "Members", sample: dict[str, Any]) -> bytes:
    """A sample that stays in its tar."""
    (image,) = (content for field, content in sample.items() if field not in ("__key__", "json"))
    item = parse_json(sample["json"])
    return line(sample["__key__"], item, tars.place_of(item["path"]), tars.root, image)


def _header(name: str, size: int) -> bytes:
    """A member's header as tarfile makes it, which takes many times as long: no time, no owner."""
    if size > LARGEST or len(name) > 100:
        raise UserError(
            f"{name} of {size} bytes is none that a tar file holds; leave the image out or shorten its name"
        )
    header = bytearray(_empty_header())
    header[: len(name)] = name.encode("ascii")
    header[124:135] = f"{size:011o}".encode()
    header[148:156] = b" " * 8
    header[148:155] = f"{sum(header):06o}\0".encode()
    return bytes(header)


@cache
def _empty_header() -> bytes:
    member = tarfile.TarInfo()
    member.mode = 0o644
    return member.tobuf(tarfile.USTAR_FORMAT)


def _parts(source: Source, split: str, indices: Sequence[int]) -> Iterator[Part]:
    """A few items at a time, each with what is known of it."""
    items, known = source.items(split), source.known
    for at in range(0, len(indices), CHUNK):
        part = indices[at : at + CHUNK]
        rows = known.recall([items[index].path for index in part]) if known else {}
        yield [(index, items[index], rows.get(items[index].path)) for index in part]


def _is_small(part: Part) -> bool:
    """Whether reading the images is little work: none is to be decoded."""
    return all(row and row.decoder for _, _, row in part)


def _samples(source: Source, split: str, part: Part) -> list[dict[str, Any] | UserError]:
    """A few samples, or what is wrong with each."""
    return [_sample(source, f"{split}-{index:08d}", item, row) for index, item, row in part]


def _sample(source: Source, key: str, item: Item, row: "Row | None") -> dict[str, Any] | UserError:
    try:
        image = _whole(source, item, row)  # here, not hours into training
        extension = source.image_extension(item)
    except UserError as error:
        return error
    return {"__key__": key, extension: image, "json": canonical_json(item._asdict())}


def _whole(source: Source, item: Item, row: "Row | None") -> bytes:
    """The image's bytes. Raises UserError when they cannot be read or decoded; what was decoded before as it is now is
    not again."""
    name = f"{item.path} of {source.key}"
    if source.known:
        return source.known.check(item.path, name, row)
    image = source.read(item)
    check(image, name)
    return image


def _digest(manifest: Manifest) -> str:
    identity = {key: value for key, value in manifest.items() if key not in ("schema_version", "tars", "digest")}
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a prepared folder. Raises UserError when missing, of an unknown schema version, or altered."""
    path = Path(folder) / MANIFEST
    manifest = cast(Manifest, read_json(path, made_by=_made_by(path), keys=KEYS))
    if manifest.get("digest") != _digest(manifest):
        raise UserError(f"{path} was altered after it was written; run `{_made_by(path)}` again")
    if problem := wrong_entry(manifest, Manifest):
        raise Damaged(f"{path}: {problem}; run `{_made_by(path)}` again")
    return manifest


def _made_by(path: Path) -> str:
    """The command that writes a file of data/<dataset>/pool or data/<dataset>/<shots>shot-seed<seed>."""
    prepared = re.search(r"\bdata/([\w-]+)/(?:pool|(\d+)shot-seed(\d+))$", path.parent.as_posix())
    if not prepared:  # a folder of somebody's own
        return "mmrl prepare"
    return f"mmrl prepare --dataset {prepared[1]}" + (
        f" --shots {prepared[2]} --seed {prepared[3]}" if prepared[2] else ""
    )


def read_examples(folder: str | Path, split: str, half: str) -> list[Example]:
    """All examples of one split and half ("base" or "novel"), in written order; checks and raises as
    `stream_examples`."""
    return list(stream_examples(folder, split, half))


def stream_examples(folder: str | Path, split: str, half: str) -> Iterator[Example]:
    """The examples of one split and half, one at a time, in written order; empty when the half has none.

    Every shard is hashed before the first example comes. Raises UserError, at the call, when the folder lacks the
    split or a shard is missing or not what the manifest says; ValueError on a half other than "base", "novel".
    """
    shards = shards_of(folder, split, half)
    for shard in shards:
        check_shard(shard)
    return chain.from_iterable(examples_of(shard) for shard in shards)


@dataclass(frozen=True)
class Shard:
    """A file of up to SHARD_ITEMS examples, and its digest. Of images that stay where they are `tars` is the folder of
    the tar files that it lists (own/places.py)."""

    path: Path
    sha256: str
    count: int
    tars: Path | None = None


def shards_of(folder: str | Path, split: str, half: str) -> list[Shard]:
    """The shards of one split and half, in written order. Raises as `stream_examples`, but opens none."""
    if half not in HALVES:
        raise ValueError(f"half is {half!r}, not one of {HALVES}")
    folder, manifest = Path(folder), read_manifest(folder)
    if split not in manifest["counts"]:
        raise UserError(f"{folder} holds {' and '.join(manifest['counts'])}, not {split}; name another prepared folder")
    entries = [entry for entry in manifest["shards"] if (entry["split"], entry["half"]) == (split, half)]
    tars = Path(manifest["tars"]) if "tars" in manifest else None
    return [Shard(folder / entry["file"], entry["sha256"], entry["count"], tars) for entry in entries]


def check_shard(shard: Shard) -> None:
    """Raises UserError for a shard that is missing or not what the manifest says."""
    try:
        sha256 = sha256_file(shard.path)
    except (OSError, ValueError) as error:  # ValueError: a path that is none
        reason = getattr(error, "strerror", error)
        raise UserError(f"cannot read the shard {shard.path} ({reason}); run `{_made_by(shard.path)}` again") from None
    if sha256 != shard.sha256:
        again = f"run `{_made_by(shard.path)}` again"
        raise UserError(f"the shard {shard.path} is not what {MANIFEST} says (sha256 differs); {again}")


def examples_of(shard: Shard, content: bytes | None = None) -> Iterator[Example]:
    """The examples of one shard, from its file or from its content, its digest unchecked. Raises Damaged.

    By tarfile: WebDataset's own reader would import torch, which not everybody who reads a shard needs.
    """
    try:
        if shard.tars and content is None:
            yield from (Example(image=image, **facts) for facts, image in listed(shard.path, shard.tars))
        else:
            yield from _examples(shard.path, None if content is None else io.BytesIO(content))
    except (tarfile.TarError, LookupError, TypeError, ValueError, OverflowError) as error:  # not as it is written here
        raise Damaged(f"the shard {shard.path} cannot be read ({error}); run `{_made_by(shard.path)}` again") from None


def packed(shard: Shard) -> bytes:
    """The content of a shard for `examples_of` where neither it nor the tar files that it lists are at hand."""
    tar = io.BytesIO()
    for one in examples_of(shard):
        facts = {"path": one.path, "label": one.label, "class_name": one.class_name}
        _add(tar, {"__key__": one.key, extension_of(one.path): one.image, "json": canonical_json(facts)})
    _end(tar)
    return tar.getvalue()


def _examples(path: Path, file: io.BytesIO | None) -> Iterator[Example]:
    with tarfile.open(path, "r:", file) as tar:
        for key, members in groupby(tar, key=lambda member: member.name.partition(".")[0]):
            yield _example(key, {member.name: read_member(tar, member) for member in members})
            tar.members.clear()  # type: ignore[attr-defined]  # what tarfile has read, unknown to its stubs


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a shard's member. Raises ValueError where it is no file."""
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


def _example(key: str, files: dict[str, bytes]) -> Example:
    facts, (image,) = parse_json(files.pop(f"{key}.json")), files.values()
    return Example(key, image=image, **facts)
