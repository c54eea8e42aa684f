"""Outputs that were made ahead, kept below .mmrl/ready until DVC runs the item that they belong to."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from flows.project.paths import READY, STATE
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, sha256_file, write_json

CARD, OUTPUT = "ready.json", "output"


class Card(TypedDict):
    """What is kept beside an output: the stage's summary, and the sha256 of each file."""

    summary: dict[str, Any]
    files: dict[str, str]


class ReadyOutput:
    """The place where one output, a folder of files, is kept: `.mmrl/ready/<its final path>/<identity>`. The identity
    is a digest of all that its bytes depend on.

    An output is there whole or not at all. For each final path only the one that was kept last stays.
    """

    def __init__(self, final: Path, identity: str):
        self.identity, self.folder = identity, READY / final / identity

    @property
    def output(self) -> Path:
        return self.folder / OUTPUT

    @property
    def is_there(self) -> bool:
        return self.output.exists()

    def keep(self, output: Path, summary: dict[str, Any]) -> None:
        """Keep a copy of `output` and the stage's summary. Where that fails, the item makes the output again."""
        aside = STATE / "aside" / f"ready-{self.identity}"
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # the disk is full, or another process keeps the same
            shutil.copytree(output, aside / OUTPUT)
            write_json(aside / CARD, {"summary": summary, "files": _digests(aside / OUTPUT)})
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            for other in self.folder.parent.iterdir():
                shutil.rmtree(other, ignore_errors=True)
            aside.rename(self.folder)
        shutil.rmtree(aside, ignore_errors=True)

    def take(self, out: Path) -> dict[str, Any] | None:
        """Move the output to `out` and return the stage's summary; None where no output is kept or a damaged one."""
        try:
            card = read_json(self.folder / CARD, made_by="dvc repro", keys=("summary", "files"), shape=Card)
            shutil.copytree(self.output, out)
            whole = _digests(out) == card["files"]
        except (OSError, UserError):
            whole = False
        self.drop()
        if whole:
            return card["summary"]
        shutil.rmtree(out, ignore_errors=True)
        return None

    def drop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}
