"""Images in WebDataset tar files, known by tar and offset: the bytes stay on disk, nothing is unpacked or unpickled."""

import glob
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import groupby
from operator import and_
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from mmrl_core.data.benchmark import coop
from mmrl_core.data.foreign import check_format
from mmrl_core.data.known.files import Content, Reader, States, state_of
from mmrl_core.data.own.places import REPLACE, Place
from mmrl_core.data.own.records import (
    Gathered,
    Record,
    Records,
    as_text,
    check_files,
    check_name,
    is_hidden,
    is_image,
    some,
    split_named,
    words_of,
)
from mmrl_core.errors import UserError, refuse_all
from mmrl_core.parsing import parse_json


class Members(Reader):
    """Reads images by their places in tars; their paths begin with the tars'."""

    def __init__(self, root: Path, places: dict[str, Place]):
        self.root, self.place, self._places = root, os.path.realpath(root), places

    def place_of(self, path: str) -> Place:
        """Where an image lies."""
        return self._places[path]

    def read(self, path: str) -> Content:
        return self._places[path].read()

    def size(self, path: str, of_file: int) -> int:
        return self._places[path].size


class Sample(NamedTuple):
    """A sample's image, and its label as the tar writes it with the readable name that stands beside it, if one."""

    path: str
    image: Place
    label: str
    name: str | None


def gather(shards: str) -> Gathered:
    """The samples of all tar files in the folder `shards`, or of those that match it as a pattern, by path.

    A path is the tar's, a slash, and the member's. Raises UserError on a tar that is damaged or cut short, and on a
    sample without exactly one image and a label.
    """
    root, names, others = _tar_files(shards)
    splits = _splits(shards, names)
    samples = _all_samples(root, names)
    records = [Record(sample.path, sample.label, splits.get(name)) for name in names for sample in samples[name]]
    places = {sample.path: sample.image for name in names for sample in samples[name]}
    readable = _names(shards, [sample for name in names for sample in samples[name]])
    files = [root / name for name in names]
    records.sort()
    states, state_by_tar = States(), {file: state_of(os.stat(file)) for file in files}
    for record in records:
        states.add(state_by_tar[places[record.path].tar])
    notes = [f"{len(others)} files that are no .tar files were left out: {some(others)}"] if others else []
    return Gathered(shards, Records.of(records), files, Members(root, places), readable, lambda: notes, states)


def _tar_files(shards: str) -> tuple[Path, list[str], list[str]]:
    """The folder that holds the tar files, their paths below it, and those of other files."""
    if Path(shards).is_dir():
        root, files = Path(shards), [path for path, _ in coop.walk(Path(shards))]
    else:
        root = Path(re.split(r"[*?\[]", shards)[0] + "x").parent  # the folders before the first wildcard
        files = [str(Path(path).relative_to(root)) for path in glob.glob(shards, recursive=True)]
    files = sorted(name for name in files if not is_hidden(name))
    names = [name for name in files if name.lower().endswith(".tar")]
    if not names:
        raise UserError(f"there is no .tar file at {shards}; name a folder of tar files, or a pattern such as a/*.tar")
    check_files(root, names, shards)
    return root, names, [name for name in files if name not in names]


def _splits(shards: str, names: list[str]) -> dict[str, str]:
    """Tar -> split where a word in every tar's name or folders is one; empty where none is.

    A word that all of them have says nothing, as of crash-test-train-0.tar and crash-test-val-0.tar.
    """
    words = {name: Counter(words_of(str(PurePosixPath(name).with_suffix("")))) for name in names}
    same = reduce(and_, words.values())
    named = {name: _named(words[name] - same) for name in names}
    if not any(named.values()):
        named = {name: _named(words[name]) for name in names}
    splits = {name: next(iter(splits)) for name, splits in named.items() if splits}
    for name in names:
        if len(named[name]) > 1:
            raise UserError(f"{shards}: {name} names {' and '.join(sorted(named[name]))}; leave one of the words")
        if splits and name not in splits:
            raise UserError(f"{shards}: {next(iter(splits))} names a split, {name} does not; name all tar files alike")
    return splits


def _named(words: Iterable[str]) -> set[str]:
    return {split for word in words if (split := split_named(word))}


def _names(shards: str, samples: list[Sample]) -> dict[str, str]:
    named: dict[str, str] = {}
    for sample in samples:
        if sample.name is not None and named.setdefault(sample.label, sample.name) != sample.name:
            names = f"{named[sample.label]!r} and {sample.name!r}"
            raise UserError(f"{shards}: label {sample.label} is named {names} ({sample.path}); correct one of them")
    return named


def _all_samples(root: Path, names: list[str]) -> dict[str, list[Sample]]:
    """The samples of each tar. Raises UserError naming the first thing wrong with each."""
    samples, problems = {}, []
    for name in names:
        try:
            samples[name] = list(_samples(root / name, name))
        except UserError as error:
            problems.append(str(error))
    refuse_all("tar files", problems)
    return samples


def _samples(tar: Path, name: str) -> Iterator[Sample]:
    """WebDataset's grouping: members that follow each other and share their name up to the file's first dot."""
    seen, places = set(), _members(tar)
    with open(tar, "rb") as file:
        for key, members in groupby(places, key=lambda member: _key_and_field(member[0])[0]):
            if key in seen:
                raise UserError(
                    f"{tar}: the members of sample {key} do not lie together, or it comes twice; correct it"
                )
            seen.add(key)
            yield _sample(f"{tar}, sample {key}", name, list(members), file)


def _key_and_field(member: str) -> tuple[str, str]:
    folder, slash, file = member.rpartition("/")
    stem, _, field = file.partition(".")
    return folder + slash + stem, field.lower()


def _sample(where: str, name: str, members: list[tuple[str, Place]], tar: BinaryIO) -> Sample:
    fields = {_key_and_field(member)[1]: place for member, place in members}
    if len(fields) < len(members):
        raise UserError(f"{where} holds one member twice; correct the tar file")
    images = [pair for pair in members if is_image(pair[0])]
    # Of "jpg" and "mask.png" the first is the image; a lone "photo.jpg" is one as well.
    images = [pair for pair in images if "." not in _key_and_field(pair[0])[1]] or images
    for member, _ in [] if images else members:
        check_format(member, where)
    if len(images) != 1:
        raise UserError(f"{where} has {len(images)} images, not one; correct the tar file")
    return Sample(f"{name}/{images[0][0]}", images[0][1], *_label(where, fields, tar))


def _label(where: str, fields: dict[str, Place], tar: BinaryIO) -> tuple[str, str | None]:
    """The label as text, from `cls` or else from `json`, and the class name that `json` holds beside it."""
    facts = _json(where, fields["json"], tar) if "json" in fields else {}
    label = _decoded(where, fields["cls"], tar).strip() if "cls" in fields else as_text(facts.get("label"))
    name = as_text(facts.get("class_name"))
    if label:
        return label, name
    if name:
        return name, None
    raise UserError(f"{where} has no cls, and no json with label or class_name; add one of them")


def _json(where: str, place: Place, tar: BinaryIO) -> dict[str, Any]:
    try:
        facts = parse_json(_decoded(where, place, tar))
    except ValueError as error:
        raise UserError(f"{where}: its json cannot be read ({error}); correct the tar file") from None
    if not isinstance(facts, dict):
        raise UserError(f"{where}: its json is no object with a label; correct the tar file")
    return facts


def _decoded(where: str, place: Place, tar: BinaryIO) -> str:
    try:
        return place.read_from(tar).decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: its label is not UTF-8 text; correct the tar file") from None


def _members(tar: Path) -> list[tuple[str, Place]]:
    """Names and places of the files in a whole, uncompressed tar, in its order."""
    try:
        with tarfile.open(tar, "r:") as archive:
            members = [_member(tar, info) for info in archive if not info.isdir()]
            _check_end(archive)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"cannot read the tar file {tar} ({error}); {REPLACE}") from None
    return [member for member in members if not is_hidden(member[0])]


def _member(tar: Path, info: tarfile.TarInfo) -> tuple[str, Place]:
    check_name(info.name, str(tar))
    if not info.isreg() or info.issparse():
        raise UserError(f"{tar}: {info.name} is no regular file but a link, a device or sparse; put the file there")
    return str(PurePosixPath(info.name)), Place(tar, info.offset_data, info.size)


def _check_end(archive: tarfile.TarFile) -> None:
    """A tar ends in zero blocks. tarfile takes a damaged header or the end of the file for the end as well."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"it is cut short or damaged at byte {archive.offset}")
    while block := archive.fileobj.read(1 << 20):
        if block.strip(b"\0"):
            raise ValueError("more follows after its end; one tar was appended to another")
