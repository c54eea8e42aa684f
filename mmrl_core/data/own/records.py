"""What a folder, a table and shards of the user's have in common: labelled paths, and rules for names and files."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmrl_core.config import nearest
from mmrl_core.data.known.files import Reader, States
from mmrl_core.data.source import is_image_name
from mmrl_core.errors import UserError, refuse_all

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+")  # trainImages and train_images have the same words
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}  # what Windows and macOS leave in folders and archives


class Record(NamedTuple):
    """One image before labels are numbered: its path, its label as the data write it, its split if they name one."""

    path: str
    label: str
    split: str | None


class Records(Sequence[Record]):
    """Very many records, which as objects of their own would take longer to make and to hold than to find."""

    def __init__(self, paths: list[str], labels: list[str], splits: list[str | None]):
        self.paths, self.labels, self.splits = paths, labels, splits

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Record]:
        return map(Record, self.paths, self.labels, self.splits)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Records(self.paths[index], self.labels[index], self.splits[index])
        return Record(self.paths[index], self.labels[index], self.splits[index])

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Records":
        return cls(*([one.path for one in records], [one.label for one in records], [one.split for one in records]))


@dataclass(frozen=True)
class Gathered:
    """All that a place holds, by path. `names` are the readable names by label, where the data themselves carry them.

    `states` are those of the records' files, in their order. One state of the data is told from another by these where
    the images are `files_of_their_own`, and by the sizes and times of change of `files` besides.
    """

    where: str
    records: Records
    files: list[Path]
    reader: Reader
    names: dict[str, str] = field(default_factory=dict)
    notes: Callable[[], list[str]] = list
    states: States = field(default_factory=States)
    files_of_their_own: bool = False


def is_image(path: str) -> bool:
    """Whether the file extension, in either case, is that of an image that is read."""
    return is_image_name(path)


def is_hidden(path: str) -> bool:
    """Whether a part of the path is a dot file or what an operating system left there."""
    if "/" not in path:
        return path.startswith(".") or path.lower() in CLUTTER
    return any(map(is_hidden, path.split("/")))


def check_name(path: str, where: str) -> None:
    """Raises UserError on a path that is absolute, climbs with '..', or is not UTF-8."""
    parts = PurePosixPath(path).parts
    if "\0" in path:
        raise UserError(f"{where}: the path {path!r} has a NUL character, which no file's has; correct it")
    if not parts or parts[0] == "/" or ".." in parts:
        raise UserError(f"{where}: the path {path!r} does not stay inside its folder; correct it")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the file name {path!r} is not UTF-8; rename the file") from None


class Inside:
    """The files below a folder, links followed. What its folders are is looked up once."""

    def __init__(self, root: Path):
        self.root, self._real = root, cache(os.path.realpath)

    def check(self, path: str, where: str) -> os.stat_result:
        """What the system says of the file at `path` below the root. Raises UserError unless it is a regular one that
        lies there."""
        check_name(path, where)
        full = os.path.join(self.root, path)
        try:
            found = os.lstat(full)
            is_link = stat.S_ISLNK(found.st_mode)
            found = os.stat(full) if is_link else found
        except OSError as error:
            raise UserError(f"{where}: cannot find {full} ({error.strerror}); restore it or leave it out") from None
        folder, name = os.path.split(full)
        real = os.path.realpath(full) if is_link else os.path.join(self._real(folder), name)
        if not real.startswith(os.path.join(self._real(str(self.root)), "")):
            raise UserError(f"{where}: {path} is a link out of {self.root}; put the file itself there")
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{where}: {path} is no regular file; remove it or put the file itself there")
        return found

    def problem(self, path: str, where: str) -> str | None:
        """What `check` says is wrong."""
        try:
            self.check(path, where)
        except UserError as error:
            return str(error)
        return None


def check_files(root: Path, paths: Iterable[str], where: str) -> None:
    """`Inside.check` of each; the UserError names all that fail."""
    inside = Inside(root)
    refuse_all("files", [problem for path in paths if (problem := inside.problem(path, where))])


def as_text(value: Any) -> str | None:
    """Text or a whole number as text; None for anything else. A column of integers with gaps comes as floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else None


def split_named(name: str) -> str | None:
    """ "train", "val" or "test", in any case and by the usual other names (SPLIT_NAMES); None for another word."""
    return SPLIT_NAMES.get(name.strip().lower())


def words_of(name: str) -> list[str]:
    """The words in the name of a file or folder, in lower case and without numbers; of "trainset" the word is train."""
    words = [word.lower() for word in WORD.findall(name)]
    return [short if split_named(short := word.removesuffix("set")) else word for word in words]


def split_in(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that one word of the name is, and the other words; None where no word is a split, or several are."""
    words = words_of(name)
    splits = [split for word in words if (split := split_named(word))]
    return splits[0] if len(splits) == 1 else None, tuple(word for word in words if not split_named(word))


def is_split(name: str) -> bool:
    """Whether the folder's name is the word for a split and nothing else but numbers."""
    split, others = split_in(name)
    return bool(split) and not others


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "did you mean ...?", or the known words where none is near."""
    known = list(known)
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else f"known: {some(known)}"


def some(words: Iterable[str], most: int = 5) -> str:
    """The first few of the words, and how many more there are."""
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
