"""docs/guides/first-ten-minutes.md as a reader goes through it, from an empty folder."""

import csv
from pathlib import Path

import pytest

from tests.documents.commands import BLOCK
from tests.support.workspace import ROOT, run

pytestmark = pytest.mark.slow
BETWEEN = "-- next --"


def test_the_first_ten_minutes_are_as_they_are_told(tmp_path):
    guide = (ROOT / "docs/guides/first-ten-minutes.md").read_text()
    install, *blocks = [block for language, block in BLOCK.findall(guide) if not language]
    assert "pip install" in install
    script = "".join(f"{block}echo {BETWEEN}\necho {BETWEEN} >&2\n" for block in blocks)
    done = run(tmp_path, "bash", "-euc", script)
    said = list(zip(done.stdout.split(BETWEEN), done.stderr.split(BETWEEN), strict=True))
    assert "next: cd first && mmrl flow adapt" in said[0][0]
    assert "| digits | 16 | MMRL++" in said[1][0] and "1 adapters registered, 1 promoted" in said[1][1]
    assert "nothing to do" in said[2][1]
    labels = rows(tmp_path / "first/labels.csv")
    assert {row["label"] for row in labels} == {"zero", "one", "two", "three", "four"}
    assert len(rows(tmp_path / "first/other.csv")) == len(labels) == len(list(tmp_path.glob("first/pictures/*.png")))
    assert "there was no champion" in said[4][0]
    assert (tmp_path / "first/onnx/model.onnx").exists() and list(tmp_path.glob("first/releases/**/onnx/model.onnx"))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))
