"""The commands that documents show: of shell blocks, and those that a sentence names."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.workspace import ROOT

DOCUMENTS = sorted(
    path
    for glob in ("*.md", "docs/**/*.md", "infra/**/*.md", "findings/*.md", "tests/golden/*.md")
    for path in ROOT.glob(glob)
)
SHELL = ("", "bash", "sh", "console")  # what stands behind ``` of a block of commands
NAMED = (
    "mmrl",
    "dvc",
    "prefect",
    "mlflow",
    "ray",
    "python",
    "make",
    "docker",
    "kubectl",
    "git",
    "pip",
    "bash",
    ".ci/run",
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"`([^`]+)`")
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=")
BETWEEN = {"&&", "&", "|", ";"}


@dataclass(frozen=True)
class Command:
    """`words` without variables before them. One of a block is whole; a sentence may leave out what is required."""

    document: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return shlex.join(self.words)


def documented() -> list[Command]:
    """All of them, each once a document."""
    found = {command: None for path in DOCUMENTS for command in commands_of(path)}
    return list(found)


def commands_of(document: Path) -> Iterator[Command]:
    name, text = str(document.relative_to(ROOT)), document.read_text()
    for language, block in BLOCK.findall(text):
        if language in SHELL:
            yield from (Command(name, words, True) for words in shell_commands(block))
    for span in SPAN.findall(BLOCK.sub("", text)):
        for words in _one_of_each(span):
            if words and words[0] in NAMED:
                yield Command(name, words, False)


def shell_commands(text: str) -> Iterator[tuple[str, ...]]:
    """Each command of a script: lines that go on are joined, comments and variables left out."""
    line = ""
    for part in text.replace("\\\n", " ").splitlines(keepends=True):
        line += part
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # quotes that the next line closes
            continue
        yield from _apart(words)
        line = ""
    assert not line, f"quotes that nothing closes: {line}"


def _one_of_each(span: str) -> list[tuple[str, ...]]:
    """`a b|c` is two commands; what is no line of a shell is none."""
    *before, last = span.split("|") if re.fullmatch(r"[^'\"]* \w+(\|\w+)+", span) else [span]
    if before:
        start = before[0].rpartition(" ")[0]
        choices = [before[0].rpartition(" ")[2], *before[1:], last]
        return [words for choice in choices for words in shell_commands(f"{start} {choice}")]
    try:
        return list(_apart(shlex.split(span)))
    except ValueError:
        return []


def _apart(words: list[str]) -> Iterator[tuple[str, ...]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in BETWEEN:
            command.append(word)
            continue
        while command and VARIABLE.match(command[0]):
            command.pop(0)
        if command:
            yield tuple(command)
        command = []
