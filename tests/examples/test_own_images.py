"""The folder of pictures that the example makes is one that a project can be made for."""

import sys

import yaml

from tests.support.workspace import ROOT, in_turn, run

PROGRAM = str(ROOT / "examples/own_images/photographs.py")


def test_the_examples_folder_becomes_a_project_by_the_commands_of_its_readme(tmp_path):
    said = run(tmp_path, sys.executable, PROGRAM, "photos").stdout
    assert said == "photos/labelled: 8 classes of 40 pictures; photos/new: 16 to label\n"
    assert len(list((tmp_path / "photos/new").iterdir())) == 16
    said = in_turn(tmp_path, "check photos/labelled", "init project --images photos/labelled")
    assert "\nnext: mmrl init PROJECT --images photos/labelled, then mmrl flow adapt in PROJECT\n" in said
    assert said.endswith("\nnext: cd project && mmrl flow adapt\n")
    settings = yaml.safe_load((tmp_path / "project/params.yaml").read_text())
    assert settings["datasets"] == ["labelled"] and settings["data"]["protocol"] == "few-shot"
    again = run(tmp_path, sys.executable, PROGRAM, "photos", check=False)
    assert (again.returncode, again.stderr) == (1, "photos is there already; name another folder\n")
