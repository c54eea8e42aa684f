"""docs/guides/first-ten-minutes.md as a reader goes through it, from the settings that come with the project."""

import csv
import shutil
from pathlib import Path

import pytest

from tests.documents.commands import BLOCK
from tests.support.workspace import ROOT, make_workspace, run

pytestmark = pytest.mark.slow
SET_UP = ("make ", "source ")


def test_the_first_ten_minutes_are_as_they_are_told(tmp_path):
    folder = make_workspace(tmp_path / "project", dvc=True)
    shutil.copy(ROOT / "params.yaml", folder)
    guide = (ROOT / "docs/guides/first-ten-minutes.md").read_text()
    blocks = [block for language, block in BLOCK.findall(guide) if not language and not block.startswith(SET_UP)]
    said = [run(folder, "bash", "-euc", block) for block in blocks]
    assert "1 adapters registered, 1 promoted" in said[0].stderr and "| digits | 16 | MMRL++" in said[0].stdout
    assert "nothing to do" in said[1].stderr
    labels = rows(folder / "labels.csv")
    assert {row["label"] for row in labels} == {"zero", "one", "two", "three", "four"}
    assert len(rows(folder / "other.csv")) == len(labels) == len(list((folder / "pictures").glob("*.png")))
    assert "there was no champion" in said[3].stdout
    assert (folder / "onnx/model.onnx").exists() and list((folder / "releases").rglob("onnx/model.onnx"))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))
