"""`mmrl backbones`: open_clip's architectures, as a table, as JSON and as the document has them."""

import json
import re
import subprocess
import sys

import open_clip
import pytest
from rich.console import Console

from flows.cli.clips import backbones
from mmrl_core.clip.catalogue import catalogue
from tests.support.workspace import ROOT, environment

GUIDE = (ROOT / "docs/backbones.md").read_text()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No settings are needed."""
    monkeypatch.chdir(tmp_path)


def test_the_documents_table_is_what_the_command_prints():
    command = [sys.executable, "-m", "flows.cli", "backbones", "--markdown"]  # here other tests may have added models
    printed = subprocess.run(command, env=environment(), text=True, capture_output=True, check=True).stdout
    *table, summary = printed.splitlines()
    assert "\n".join(table) in GUIDE and f"\n{summary}.\n" in GUIDE
    assert f"## The architectures of open_clip {open_clip.__version__}" in GUIDE


def test_every_family_that_is_adapted_is_in_the_documents_tables_of_towers():
    adapted = {row.family for row in catalogue() if row.problem is None}
    assert [family for family in adapted if family.split(" with ")[0] not in GUIDE.split("## What one costs")[0]] == []


def test_a_pipe_gets_a_line_an_architecture_and_the_tags_of_a_few(mmrl):
    lines = mmrl("backbones", "ViT-B-16-plus-240").splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["architecture", "ViT-B-16-plus-240"]
    assert lines[2] == "ViT-B-16-plus-240 laion400m_e31: MIT (published by LAION and OpenCLIP)"
    assert lines[-1] == "1 of 1 can be adapted, 1 of 1 with published weights"


def test_refused_and_adaptable_ones_are_all_there_are(mmrl):
    def names(*option: str) -> set[str]:
        return {row["name"] for row in json.loads(mmrl("backbones", "--json", *option))["architectures"]}

    adaptable, refused = names("--adaptable"), names("--refused")
    assert adaptable & refused == set() and adaptable | refused == {*open_clip.list_models()}
    assert "ViT-B-16" in adaptable and "RN50" in refused
    out = mmrl("backbones", "--refused", "RN50")
    assert "ResNet" in out and out.splitlines()[-1] == "0 of 8 can be adapted, 0 of 8 with published weights"


def test_json_has_sizes_and_each_tags_licence(mmrl):
    [row] = json.loads(mmrl("backbones", "--json", "ViT-L-14-336-quickgelu"))["architectures"]
    assert row["adaptable"] is True and row["parameters"] == 427_944_192 and row["tokenizer"] is None
    assert (row["image"], row["image_size"]) == ({"width": 1024, "depth": 24}, 336)
    assert row["tags"]["openai"]["licence"] == "MIT"


def test_a_name_that_nothing_has_is_one_line(mmrl):
    said = mmrl("backbones", "VIT-B-61", code=2)
    assert re.fullmatch(r"mmrl: no architecture of open_clip is like 'VIT-B-61'; did you mean [\w-]+\?\n", said)


def test_a_terminal_gets_whole_names_and_reasons_that_wrap(monkeypatch, capsys):
    monkeypatch.setattr("rich.console.Console", lambda: Console(width=100, force_terminal=True))
    backbones._show_in_terminal(catalogue("RN50x64"))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(re.sub(r"\x1b\[[\d;]*m", "", line)) <= 100 for line in lines)
    assert "RN50x64-quickgelu" in "".join(lines)
