"""`mmrl init`: a folder in which the pipeline's commands work, made for the images that lie somewhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from flows.settings.params import load_params
from flows.settings.template import template
from tests.core.data.many import SETTLED
from tests.support.workspace import BIN, environment, run

MMRL = str(BIN / "mmrl")


def photographs(folder: Path, classes=("oak", "elm"), each: int = 6) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            Image.new("RGB", (24, 24), (40 * number, 9 * index, 90)).save(folder / name / f"{index}.png")
    return folder


def blank(path: Path) -> None:
    """No image any more, but as it was for all that the file system tells."""
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    os.utime(path, ns=(SETTLED, SETTLED))


def refused(folder: Path, *arguments: str) -> str:
    done = run(folder, MMRL, "init", *arguments, check=False)
    assert done.returncode == 2 and done.stderr.count("mmrl: ") == 1, done.stderr
    return done.stderr


def comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]


def test_an_empty_folder_becomes_the_demo(tmp_path):
    done = run(tmp_path, MMRL, "init")
    assert (tmp_path / "params.yaml").read_bytes() == template("params.yaml")
    assert (tmp_path / "dvc.yaml").read_bytes() == template("stages.yaml")
    assert done.stdout.endswith("next: mmrl flow adapt\n")
    assert "analytics = false" in (tmp_path / ".dvc/config").read_text()
    assert run(tmp_path, "git", "check-ignore", ".mmrl", "models", "mlflow.db").returncode == 0
    assert run(tmp_path, MMRL, "fingerprint", "--dataset", "digits").returncode == 0


def test_images_are_found_and_written_into_settings_that_keep_their_comments(tmp_path):
    for path in photographs(tmp_path / "My Trees (2026)").rglob("*.png"):
        os.utime(path, ns=(SETTLED, SETTLED))
    done = run(tmp_path, MMRL, "init", "project", "--images", "My Trees (2026)")
    assert "found My-Trees-2026: 12 images of 2 classes (elm, oak); protocol few-shot" in done.stdout
    assert done.stdout.endswith("next: cd project && mmrl flow adapt\n")
    params = load_params(tmp_path / "project/params.yaml")
    assert (params.datasets, params.data.protocol) == (["My-Trees-2026"], "few-shot")
    assert params.data.own["My-Trees-2026"].images == str(tmp_path / "My Trees (2026)")
    text = (tmp_path / "project/params.yaml").read_text()
    assert comments(text) == comments(template("params.yaml").decode())
    blank(tmp_path / "My Trees (2026)/oak/0.png")  # which a project that knows the images does not read again
    assert run(tmp_path / "project", MMRL, "check", "--dataset", "My-Trees-2026").returncode == 0


def test_images_within_the_project_are_named_from_there(tmp_path):
    photographs(tmp_path / "trees")
    told = json.loads(run(tmp_path, MMRL, "init", "--images", "trees", "--json").stdout)
    assert (told["datasets"], told["images"], told["class_names"]) == (["trees"], 12, ["elm", "oak"])
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["data"]["own"] == {"trees": {"images": "trees"}}


def test_settings_are_written_without_the_c_part_of_ruamel_too(tmp_path):
    """Which its other part does not bring along."""
    photographs(tmp_path / "trees")
    script = "import sys; sys.modules['_ruamel_yaml'] = None; sys.argv = ['mmrl', *sys.argv[1:]]\n"
    script += "from flows.cli import main; main()"
    run(tmp_path, sys.executable, "-c", script, "init", "project", "--images", "trees")
    assert load_params(tmp_path / "project/params.yaml").data.own["trees"].images == str(tmp_path / "trees")


def test_a_class_called_like_a_word_of_yaml_stays_a_name(tmp_path):
    photographs(tmp_path / "null")
    run(tmp_path, MMRL, "init", "--images", "null")
    assert load_params(tmp_path / "params.yaml").datasets == ["null"]


def test_nothing_is_written_for_images_that_cannot_be_trained_on(tmp_path):
    assert "not there" in refused(tmp_path, "new", "--images", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "neither folders of images" in refused(tmp_path, "new", "--images", "empty")
    photographs(tmp_path / "one", ["oak"])
    assert "holds 1 classes (oak); at least 2 are needed" in refused(tmp_path, "new", "--images", "one")
    photographs(tmp_path / "broken")
    (tmp_path / "broken/oak/0.png").write_bytes(b"no image")
    assert "0.png" in refused(tmp_path, "new", "--images", "broken")
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_never_replaced(tmp_path):
    run(tmp_path, MMRL, "init")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert "`mmrl upgrade` renews it" in refused(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "dvc.yaml").write_text("stages: {}\n")
    assert "another DVC project" in refused(tmp_path, "other")
    assert "is a file" in refused(tmp_path, "dvc.yaml")


def test_in_somebodys_repository_only_a_folder_of_it_is_taken(tmp_path):
    run(tmp_path, "git", "init", "-q")
    (tmp_path / "trees").mkdir()
    (tmp_path / "trees/.gitignore").write_text("mine")
    run(tmp_path, MMRL, "init", "trees")
    assert not (tmp_path / "trees/.git").exists() and not (tmp_path / ".dvc").exists()
    assert (tmp_path / "trees/.gitignore").read_text().startswith("mine\n")
    assert run(tmp_path / "trees", MMRL, "fingerprint", "--training").returncode == 0


@pytest.mark.parametrize("missing", ["params.yaml", "versions.yaml"])
def test_a_call_that_was_killed_is_made_good_by_the_next(tmp_path, missing):
    run(tmp_path, MMRL, "init")
    for name in ("params.yaml", missing):
        (tmp_path / name).unlink(missing_ok=True)
    run(tmp_path, MMRL, "init")
    assert load_params(tmp_path / "params.yaml").datasets == ["digits", "objects"]
    assert (tmp_path / "versions.yaml").exists()


def test_without_git_nothing_is_begun(tmp_path):
    (tmp_path / "bin").mkdir()
    shutil.copy(MMRL, tmp_path / "bin/mmrl")
    path = environment() | {"PATH": str(tmp_path / "bin")}
    done = subprocess.run([MMRL, "init", "new"], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 2 and "git is not on the PATH" in done.stderr
    assert not (tmp_path / "new").exists()


def test_commands_that_need_a_project_name_the_one_that_makes_it(tmp_path):
    done = run(tmp_path, MMRL, "flow", "adapt", check=False)
    assert done.returncode == 2
    assert "params.yaml does not exist; `mmrl init` makes a project here" in done.stderr


def test_a_folder_with_no_whole_benchmark_dataset_is_refused(tmp_path):
    (tmp_path / "root/caltech-101").mkdir(parents=True)
    assert "nor a complete benchmark dataset; `mmrl check" in refused(tmp_path, "new", "--images", "root")
