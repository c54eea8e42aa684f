"""The house stays one in which things are found: bounds that hold today. pyproject.toml has the import direction."""

import ast
from pathlib import Path

from tests.support.workspace import ROOT

FILES, LINES = 17, 41  # in a folder; of a function
CODE = ("mmrl_core", "flows", "benchmarks", "tests")


def folders(*tops: str) -> list[Path]:
    return [
        folder for top in tops for folder in (ROOT / top, *(ROOT / top).rglob("*/")) if folder.name != "__pycache__"
    ]


def test_no_folder_holds_more_files_than_one_takes_in_at_a_glance():
    counts = {folder: sum(path.is_file() for path in folder.iterdir()) for folder in folders(*CODE, "docs", "infra")}
    assert {str(folder): count for folder, count in counts.items() if count > FILES} == {}


def test_no_function_is_longer_than_a_screen():
    files = [path for folder in folders("mmrl_core", "flows") for path in folder.glob("*.py")]
    lengths = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 1000 and {name: lines for name, lines in lengths.items() if lines > LINES} == {}


def test_every_room_says_what_it_is_for():
    packages = [path for folder in folders("mmrl_core", "flows") for path in folder.glob("__init__.py")]
    assert [str(path) for path in packages if not ast.get_docstring(ast.parse(path.read_text()))] == []
