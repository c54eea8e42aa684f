"""Labels of the user's own data: their order, their readable names, and which of them are base."""

import html
import re
import unicodedata
from pathlib import Path

from mmrl_core.data.own.records import Gathered, as_text, did_you_mean, some
from mmrl_core.data.own.table import read_rows
from mmrl_core.errors import UserError
from mmrl_core.parsing import DIGITS

WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|_)+")  # what the tokenizer reads apart, spaced or not


def ordered_labels(gathered: Gathered) -> list[str]:
    """The labels as the data write them, whole numbers of up to DIGITS digits by value and text by its letters. Raises
    UserError when there are fewer than two."""
    labels = set(gathered.records.labels)
    if len(labels) < 2:
        raise UserError(f"{gathered.where} holds {len(labels)} classes ({some(labels)}); at least 2 are needed")
    numbers = all(label.isdecimal() and len(label) <= DIGITS for label in labels)
    return sorted(labels, key=lambda label: (int(label) if numbers else 0, label))


def readable_names(gathered: Gathered, labels: list[str], classes: Path | None) -> list[str]:
    """A name for each label: from the table `classes`, else from the data, else the label itself.

    Raises UserError on a label that the table leaves out, and on two names that make the same prompt.
    """
    named = _read_classes(classes) if classes else gathered.names
    missing = [label for label in labels if label not in named]
    if classes and missing:
        raise UserError(f"{classes} names no class {missing[0]!r}; add it ({did_you_mean(missing[0], named)})")
    names = [unicodedata.normalize("NFC", named.get(label, label)) for label in labels]
    _check_distinct(names, str(classes or gathered.where))
    return names


def _read_classes(classes: Path) -> dict[str, str]:
    named: dict[str, str] = {}
    for row in read_rows(classes, ("class", "name")):
        label, name = (as_text(row.values[column]) for column in ("class", "name"))
        if not label or not name or named.setdefault(label, name) != name:
            raise UserError(f"{row.where}: {label!r} is named {name!r}; give every class one name")
    return named


def _check_distinct(names: list[str], where: str) -> None:
    first: dict[str, str] = {}  # name as the tokenizer reads it -> as it is written
    for name in names:
        spelled = _as_read(name)
        if any(letter < " " or letter == "\x7f" for letter in name):
            raise UserError(f"{where}: the class name {name!r} has a line break or control character; rename it")
        if not spelled:
            raise UserError(f"{where}: the class name {name!r} is empty; give the class a name")
        if spelled in first:
            raise UserError(f"{where}: classes {first[spelled]!r} and {name!r} make the same prompt; rename one")
        first[spelled] = name


def _as_read(name: str) -> str:
    """The name as CLIP's tokenizer reads it: cleaned as open_clip does it (which would import torch), and in words."""
    import ftfy

    plain = html.unescape(html.unescape(ftfy.fix_text(name.replace("_", " "))))
    return " ".join(WORD.findall(plain.lower()))


def base_labels(chosen: list[str] | None, labels: list[str], names: list[str], where: str) -> list[int] | None:
    """The numbers of the chosen classes, given as the data or as people write them; None where none are chosen.

    Raises UserError on an unknown class, and when no class would be left for either side.
    """
    if chosen is None:
        return None
    number_of = {name: number for written in (names, labels) for number, name in enumerate(written)}
    unknown = [name for name in chosen if name not in number_of]
    if unknown:
        raise UserError(f"{where} names {unknown[0]!r}, which is no class; {did_you_mean(unknown[0], number_of)}")
    base = sorted({number_of[name] for name in chosen})
    if not 0 < len(base) < len(labels):
        raise UserError(f"{where} names {len(base)} of {len(labels)} classes; leave some, but not all, for novel")
    return base


def bare_numbers(names: list[str]) -> list[str]:
    """A note where the classes have no names but numbers, of which a prompt tells a model nothing."""
    numbered = all(name.isdecimal() for name in names)
    return ["the class names are numbers; give `classes` a CSV with the columns class,name"] if numbered else []
