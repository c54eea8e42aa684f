"""A project of an earlier release, or with a dvc.yaml of its owner's, brought to the installed one."""

import json
import re
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.project import versions
from flows.scaffold.upgrade import FORMER, upgrade
from flows.settings.template import template
from mmrl_core import METHOD_VERSION
from mmrl_core.errors import UserError
from tests.support.workspace import BIN, ROOT, in_turn, make_workspace, prepare_digits, run

MMRL = str(BIN / "mmrl")


def to_former(folder: Path) -> None:
    """The project as the release before versions.yaml had made it."""
    (folder / "versions.yaml").unlink()
    (folder / "mmrl_core").mkdir()
    numbers = "".join(f"{name} = {number}\n" for name, number in versions.installed().items())
    (folder / FORMER).write_text(numbers)
    for name in ("dvc.yaml", "dvc.lock"):
        path = folder / name
        path.write_text(path.read_text().replace("versions.yaml", FORMER))


@pytest.fixture
def prepared(tmp_path) -> Path:
    """A project whose few-shot set is made, by DVC."""
    folder = make_workspace(tmp_path / "project", dvc=True)
    run(folder, sys.executable, "-m", "dvc", "repro", "-q", "prepare@digits-16-1")
    return folder


def status(folder: Path) -> dict:
    return json.loads(run(folder, sys.executable, "-m", "dvc", "status", "--json", "prepare@digits-16-1").stdout)


def test_what_an_earlier_release_made_is_stale_in_nothing(prepared):
    assert status(prepared) == {}
    to_former(prepared)
    assert status(prepared) == {}
    written = json.loads(run(prepared, MMRL, "upgrade", "--json").stdout)
    assert written == {"written": ["dvc.lock", "dvc.yaml", "versions.yaml"], "stale": [], "newer": None}
    assert (prepared / "dvc.yaml").read_bytes() == template("stages.yaml")
    assert FORMER not in (prepared / "dvc.lock").read_text()
    (prepared / FORMER).unlink()
    assert status(prepared) == {}
    assert run(prepared, MMRL, "upgrade").stdout == "nothing to do: this is the installed release's\n"


def test_dvc_makes_nothing_again_for_want_of_the_upgrade(prepared):
    """A clone of the earlier release that pulls the new dvc.yaml and keeps its own dvc.lock."""
    lock = prepared / "dvc.lock"
    lock.write_text(lock.read_text().replace("versions.yaml", FORMER))
    refused = run(prepared, sys.executable, "-m", "dvc", "repro", "prepare@digits-16-1", check=False)
    assert refused.returncode != 0 and "run `mmrl upgrade` and repeat" in refused.stderr
    run(prepared, MMRL, "upgrade")
    assert "Running" not in run(prepared, sys.executable, "-m", "dvc", "repro", "prepare@digits-16-1").stdout.replace(
        "Running stage 'fingerprint@digits'", ""
    )


def test_a_stage_refuses_versions_of_another_release(tmp_path):
    folder = make_workspace(tmp_path / "project")
    path = folder / "versions.yaml"
    path.write_text(path.read_text().replace(f"METHOD_VERSION: {METHOD_VERSION}", "METHOD_VERSION: 1"))
    for command in (("fingerprint", "--dataset", "digits"), ("flow", "adapt")):
        refused = run(folder, MMRL, *command, check=False)
        assert refused.returncode == 2
        assert f"(METHOD_VERSION 1, installed {METHOD_VERSION}); run `mmrl upgrade`" in refused.stderr
    said = run(folder, MMRL, "upgrade").stdout
    assert f"METHOD_VERSION 1 -> {METHOD_VERSION}: tune, train, evaluate and the baselines run again" in said
    prepare_digits(folder)
    assert (folder / "data/digits/2shot-seed1/manifest.json").exists()


@pytest.mark.parametrize("known", [True, False], ids=["of this release", "of an earlier one"])
def test_a_dvc_yaml_of_ones_own_is_kept(tmp_path, known):
    """With the release's beside it, where that is another than the one that it was made of."""
    folder = make_workspace(tmp_path / "project")
    own = template("stages.yaml") + b"  mine:\n    cmd: echo mine\n"
    (folder / "dvc.yaml").write_bytes(own)
    if not known:
        path = folder / "versions.yaml"
        path.write_text(re.sub("PIPELINE: .*", f"PIPELINE: {'0' * 64}", path.read_text()))
    done = upgrade(folder)
    assert (folder / "dvc.yaml").read_bytes() == own
    assert (folder / "dvc.yaml.new").exists() is not known
    assert done.newer == (None if known else "dvc.yaml.new")


def test_a_dvc_yaml_that_nobody_changed_becomes_the_releases(tmp_path):
    folder = make_workspace(tmp_path / "project")
    earlier = template("stages.yaml").replace(b"# Stages", b"# All stages")
    (folder / "dvc.yaml").write_bytes(earlier)
    (folder / "versions.yaml").write_bytes(versions.document(earlier))
    assert upgrade(folder).written == ["dvc.yaml", "versions.yaml"]
    assert (folder / "dvc.yaml").read_bytes() == template("stages.yaml")
    assert not (folder / "dvc.yaml.new").exists()


def test_a_folder_that_is_no_project_is_not_made_one(tmp_path):
    with pytest.raises(UserError, match="`mmrl init` makes one"):
        upgrade(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_versions_file_that_is_none_is_said_and_written_anew(tmp_path):
    folder = make_workspace(tmp_path / "project")
    (folder / "versions.yaml").write_text("METHOD_VERSION: many\n")
    refused = run(folder, MMRL, "fingerprint", "--dataset", "digits", check=False)
    assert refused.returncode == 2 and "`mmrl upgrade` writes it anew" in refused.stderr
    assert in_turn(folder, "upgrade").startswith("written: versions.yaml")


def test_dvc_finds_the_stages_of_this_repository_once():
    """And none in the package, wherever in a project it is installed."""
    with Repo(str(ROOT)) as repo:
        assert {stage.dvcfile.path for stage in repo.index.stages} == {str(ROOT / "dvc.yaml")}
    assert not list((ROOT / "flows").rglob("dvc.yaml"))


def test_this_repository_is_a_project_of_its_own_release():
    assert (ROOT / "versions.yaml").read_bytes() == versions.document((ROOT / "dvc.yaml").read_bytes())
    assert FORMER not in (ROOT / "dvc.lock").read_text()
