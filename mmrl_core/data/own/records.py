"""What a folder, a table and shards of the user's have in common: labelled paths, and rules for names and files."""

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmrl_core.config import nearest
from mmrl_core.data.source import is_image_name
from mmrl_core.data.splits import Item
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


@dataclass(frozen=True)
class Gathered:
    """All that a place holds. `names` are the readable names by label, where the data themselves carry them."""

    where: str
    records: list[Record]
    files: list[Path]  # whose size and time of change tell one state of the data from another
    reader: Callable[[Record | Item], bytes]
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_image(path: str) -> bool:
    """Whether the file extension, in either case, is that of an image that is read."""
    return is_image_name(path)


def is_hidden(path: str) -> bool:
    """Whether a part of the path is a dot file or what an operating system left there."""
    return any(part.startswith(".") or part.lower() in CLUTTER for part in path.split("/"))


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


def check_file(root: Path, path: str, where: str) -> None:
    """Raises UserError unless `root / path` is a regular file that lies below `root`, links followed."""
    check_name(path, where)
    full = root / path
    try:
        mode = os.stat(full).st_mode
    except OSError as error:
        raise UserError(f"{where}: cannot find {full} ({error.strerror}); restore it or leave it out") from None
    if not os.path.realpath(full).startswith(os.path.join(os.path.realpath(root), "")):
        raise UserError(f"{where}: {path} is a link out of {root}; put the file itself there")
    if not stat.S_ISREG(mode):
        raise UserError(f"{where}: {path} is no regular file; remove it or put the file itself there")


def check_files(root: Path, paths: Iterable[str], where: str) -> None:
    """`check_file` of each; the UserError names all that fail."""
    refuse_all("files", [problem for path in paths if (problem := _file_problem(root, path, where))])


def _file_problem(root: Path, path: str, where: str) -> str | None:
    try:
        check_file(root, path, where)
    except UserError as error:
        return str(error)
    return None


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
