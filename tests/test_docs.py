"""Documents lead to what is there: links, paths and modules exist, every setting is described, examples run."""

import json
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from pydantic import BaseModel

from flows.project.machine import in_words
from flows.report.tables import markdown
from flows.settings.params import Params
from mmrl_core import __all__ as public
from tests import conftest
from tests.support.workspace import ROOT, run

FOLDERS = ("*.md", "docs/**/*.md", "infra/**/*.md", "findings/*.md", "examples/*.md", "examples/*/*.md")
DOCUMENTS = sorted(path for glob in FOLDERS for path in ROOT.glob(glob))
CODE = [path for room in ("flows", "mmrl_core", "benchmarks", "examples") for path in (ROOT / room).rglob("*.py")]
ROOMS = "flows|mmrl_core|benchmarks|findings|infra|docs|tests|examples"
LINK = re.compile(r"\[[^\]]*\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)")
PATH = re.compile(rf"(?<![\w./])(?:{ROOMS})/[\w./-]*[\w/]")
MODULE = re.compile(r"(?<![\w./])(?:flows|mmrl_core|benchmarks)(?:\.[a-z_]+)+")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # of entries, by Keep a Changelog
CHANGES = (ROOT / "CHANGELOG.md").read_text()
# What was once there, what the user makes, and what any finding is called.
OTHERS = {"tests/bench", "mmrl_core.backbone", "infra/.env", "findings/NAME.sh", "examples/web/model"}
README_LINES = 150


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def headings(document: Path) -> set[str]:
    """As GitHub makes anchors of them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def exists(module: str) -> bool:
    """Whether it is a module or a package, or a name in one."""
    path = ROOT.joinpath(*module.split("."))
    if path.with_suffix(".py").exists() or path.is_dir():
        return True
    inside = [path.parent.with_suffix(".py"), path.parent / "__init__.py"]
    return any(re.search(rf"\b{path.name}\b", file.read_text()) for file in inside if file.exists())


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_to_files_and_to_headings_of_them(document):
    for target, heading in LINK.findall(document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not heading or heading in headings(path), f"{target}#{heading}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_paths_and_modules_that_a_document_names_exist(document):
    text = document.read_text()
    paths, modules = set(PATH.findall(text)) - OTHERS, set(MODULE.findall(text)) - OTHERS
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [name for name in modules if not exists(name)] == []


def test_every_test_that_holds_a_promise_is_there():
    rows = re.findall(r"^\| .+? \| (.*(?:test_\w+\.py).*) \|$", (ROOT / "docs/registry.md").read_text(), re.M)
    assert rows
    for row in rows:
        for files, tests in re.findall(r"((?:[\w/]+\.py,? ?)+): ((?:`test_\w+`,? ?)+)", row):
            for file in re.findall(r"[\w/]+\.py", files):
                text = (ROOT / file).read_text()
                assert [name for name in re.findall(r"\w+", tests) if f"def {name}(" not in text] == [], file


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_readmes_table_is_that_of_the_kept_run_and_names_its_machine():
    """`mmrl compare docs/demo.json --keep` prints both."""
    kept, text = json.loads((ROOT / "docs/demo.json").read_text()), (ROOT / "README.md").read_text()
    [table] = re.findall(r"^\| dataset \| shots .*(?:\n\|.*)+", text, re.M)
    assert table == markdown(kept["rows"])
    assert in_words(kept["machine"]) in " ".join(text.split())


def test_every_setting_is_described():
    """Under its whole name, or under its last one where a section of the page is the settings' section."""
    text = (ROOT / "docs/settings.md").read_text()
    keys = [key for name, field in Params.model_fields.items() for key in keys_of(name, field.annotation)]
    assert len(keys) > 50
    assert [key for key in keys if not re.search(rf"`({re.escape(key)}|{key.rpartition('.')[2]})`", text)] == []


def keys_of(name: str, annotation) -> list[str]:
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [f"{name}.{key}" for key in annotation.model_fields] if is_section else [name]


def test_the_tests_that_conftest_names_exist():
    assert {*conftest.FIRST, *conftest.OF_ONE_PROJECT} <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for test in conftest.NEED_GPU | conftest.NEED_PHOTOGRAPHS:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text()


def test_what_the_readme_and_the_examples_show_runs():
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert run(ROOT, sys.executable, "-c", block).stdout == "torch.Size([8, 2]) 171520\n"
    assert run(ROOT, sys.executable, "examples/adapt.py").stdout.endswith("test scans are labelled rightly\n")


def test_the_notebook_runs_from_top_to_bottom_and_is_kept_without_outputs(tmp_path):
    """In a kernel of its own, which finds the package and nothing else of this folder."""
    notebook = nbformat.read(ROOT / "examples/first_ten_minutes.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code.values())
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = {name: "".join(one.get("text", "") for one in cell.outputs) for name, cell in code.items()}
    right, tested = re.findall(r"(\d+) of (\d+) test scans are labelled rightly", said["predict"])[0]
    assert int(right) > 0.8 * int(tested) > 80
    assert "adapter.json" in said["save"]
    pictures = [name for name, cell in code.items() if any("image/png" in one.get("data", {}) for one in cell.outputs)]
    assert pictures == ["sheet", "predict", "plots"]


def test_the_notebooks_links_lead_to_files():
    cells = nbformat.read(ROOT / "examples/first_ten_minutes.ipynb", as_version=4).cells
    targets = [target for cell in cells if cell.cell_type == "markdown" for target, _ in LINK.findall(cell.source)]
    assert len(targets) > 4 and [target for target in targets if not (ROOT / "examples" / target).exists()] == []


def test_the_api_has_every_public_name_once():
    named_there = re.findall(r"^::: mmrl_core\.(\w+)$", (ROOT / "docs/api/index.md").read_text(), re.M)
    assert sorted(named_there) == sorted(public)


def test_the_newest_version_of_the_changelog_is_the_packages_and_the_citations():
    newest, *others = re.findall(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", CHANGES, re.M)
    assert re.findall(r"^## (.+)$", CHANGES, re.M)[0] == "Unreleased"
    assert set(re.findall(r"^### (.+)$", CHANGES, re.M)) <= KINDS
    assert len({newest, *others}) == 1 + len(others)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["version"], yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == (newest, newest)


def test_the_citation_has_what_its_format_asks_for():
    """What https://github.com/citation-file-format requires, of the software and of each work that it refers to."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software" and citation["license"] == "Apache-2.0"
    assert citation["message"] and citation["authors"] == [{"name": "MMRL Ops contributors"}]
    assert {one["type"] for one in citation["references"]} == {"conference-paper", "article"}
    for work in citation["references"]:
        assert work["title"] and all({"family-names", "given-names"} <= author.keys() for author in work["authors"])
        [identifier] = work["identifiers"]
        number = re.fullmatch(r"arXiv:(\d{4}\.\d{5})", identifier["value"])
        assert number and work["url"].endswith(number[1]) and number[1] in (ROOT / "docs/method.md").read_text()


def test_files_that_docstrings_and_comments_name_exist():
    gone = {
        f"{named(code)} names {path}"
        for code in CODE
        for path in PATH.findall(code.read_text())
        if path.endswith((".py", ".md")) and not (ROOT / path).exists()
    }
    assert gone == set()
