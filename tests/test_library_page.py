"""docs/library.md: its Python runs as a reader would run it, one block after the other."""

import importlib.util
import re
import sys

from mmrl_core.data.catalog import open_source
from tests.support.workspace import ROOT, run

IMAGES = 6  # of each class


def blocks() -> list[str]:
    """Every block of Python but those that need a package which is not installed here and is nobody's to require."""
    found = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/library.md").read_text(), re.S | re.M)
    lacking = [] if importlib.util.find_spec("datasets") else ["from datasets import"]
    return [block for block in found if not any(line in block for line in lacking)]


def test_every_block_of_the_page_on_the_library_runs_after_those_before_it(tmp_path, monkeypatch):
    source = open_source("digits", "")
    for label in range(3):
        folder = tmp_path / "photos" / source.class_names[label]
        folder.mkdir(parents=True)
        items = [item for item in source.train if item.label == label][:IMAGES]
        for index, item in enumerate(items):
            (folder / f"{index}.png").write_bytes(source.read(item))
    (tmp_path / "new.png").write_bytes(source.read(next(item for item in source.test if item.label == 0)))
    for name, value in (("HF_HUB_OFFLINE", "1"), ("HF_HOME", str(tmp_path / "hub"))):
        monkeypatch.setenv(name, value)
    (tmp_path / "page.py").write_text("\n".join(blocks()))
    printed = run(tmp_path, sys.executable, "page.py").stdout.splitlines()
    assert len(blocks()) >= 10
    assert printed[0] == printed[-1] == "zero" and printed[1].startswith("zero ")
    assert re.fullmatch(r"(\d+) of 18", printed[2]) and int(printed[2].split()[0]) >= 16
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter", "for-the-hub", "by-steps"}
