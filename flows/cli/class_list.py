"""Classes on the command line: `--class NAME` as often as there are classes, or `--classes FILE`."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import PATH
from mmrl_core.data.own.records import as_text, some
from mmrl_core.data.own.table import KINDS, read_rows
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from mmrl_core.light.predictor import LightPredictor
    from mmrl_core.predict import Predictor

ClassNames = Annotated[list[str] | None, typer.Option("--class", help="A class; default: the trained. Repeatable.")]
FILE = PATH | {"metavar": "FILE"}
ClassFile = Annotated[
    Path | None,
    typer.Option("--classes", help="Instead: a text file, a name a line, or a CSV class,name.", **FILE),
]


def class_list(names: list[str] | None, file: Path | None) -> list[str] | None:
    """The classes in the order given, a name as often as it is there; None where none are.

    Raises UserError for both ways at once, a file that cannot be read or names none, and a name that is no text.
    """
    if names and file:
        raise UserError(f"--class and --classes {file} both name the classes; give one of them")
    if file is None:
        return [_checked(name) for name in names] if names else None
    if file.suffix.lower() in KINDS:
        return [_checked(as_text(row.values["name"]) or "") for row in read_rows(file, ("class", "name"))]
    lines = [line.strip() for line in _text(file).split("\n")]
    if not any(lines):
        raise UserError(f"--classes {file} names no class; write a name a line")
    return [_checked(line) for line in lines if line]


def _text(file: Path) -> str:
    """With newlines of any system as `\\n`, without a byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read --classes {file} ({error.strerror}); check the path") from None
    except ValueError as error:
        raise UserError(f"--classes {file} is no text in UTF-8 ({error}); save it as that") from None


def _checked(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the class {name!r} is no text in UTF-8; write it as that") from None
    if not name.strip():
        raise UserError(f"the class {name!r} is empty; give the class a name")
    return name


def say_what_surprises(predictor: "Predictor | LightPredictor", names: list[str] | None) -> None:
    """On stderr, of classes other than the trained ones: the names that several share, and what is cut off."""
    if names is None:
        return
    counts = Counter(names)
    repeated = [f"{name} {times} times" for name, times in counts.items() if times > 1]
    if repeated and len(counts) > 1:
        _note(f"classes share a name ({some(repeated)}): a name's probability is the sum over its classes")
    if cut := predictor.cut_note(names):
        _note(cut)


def _note(text: str) -> None:
    print(f"mmrl: {text}", file=sys.stderr)
