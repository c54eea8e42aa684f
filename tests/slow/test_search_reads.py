"""What a search opens: an audit hook in every process it starts writes down each file opened below data/."""

import os
import subprocess

import pytest

from tests.workspace import BIN, environment, make_workspace

pytestmark = pytest.mark.slow

# Python imports this by itself at start-up, in Ray's workers too: they inherit PYTHONPATH.
HOOK = """
import os, sys

def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith(os.environ["WATCHED"] + os.sep):
            line = f"{os.getpid()} {os.path.relpath(path, os.environ['WATCHED'])}\\n"
            os.write(log, line.encode())

log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, f"{os.getpid()} started\\n".encode())
sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = make_workspace(
        tmp_path_factory.mktemp("project"), methods=["mmrlpp"], shots=[2], seeds=[1, 2], train={"epochs": 1},
        search={"trials": 2, "partitions": 1},
    )  # fmt: skip
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    for command in ("fingerprint", "prepare", "prepare --shots 2 --seed 1", "prepare --shots 2 --seed 2"):
        mmrl(folder, *command.split(), "--dataset", "digits")
    return folder


def mmrl(folder, *arguments, **variables) -> None:
    command = [str(BIN / "mmrl"), *arguments]
    done = subprocess.run(command, cwd=folder, env={**environment(), **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def opened_by_tune(folder, *settings) -> tuple[set[str], int]:
    """The files below data/ that `mmrl tune` opened, and how many processes the hook was in."""
    log = folder / "opened.txt"
    log.write_text("")
    watch = {"PYTHONPATH": str(folder / "hook"), "WATCHED": str(folder / "data"), "OPENED": str(log)}
    out = ["--out", str(folder / "elsewhere")] if settings else []
    mmrl(folder, "tune", "--dataset", "digits", "--method", "mmrlpp", *settings, *out, **watch)
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    return {path for _, path in lines if path != "started"}, len({process for process, _ in lines})


def test_the_search_opens_few_shot_items_of_base_classes_and_nothing_else(project):
    files, processes = opened_by_tune(project)
    folders = [f"digits/2shot-seed{seed}" for seed in (1, 2)]
    shards = {f"{folder}/{split}-base-000000.tar" for folder in folders for split in ("train", "val")}
    assert files == shards | {f"{folder}/manifest.json" for folder in folders}
    assert processes >= 3  # the command, Ray's own and a worker: the hook is where the trials run
    assert all(os.path.exists(project / "data" / path.replace("base", "novel")) for path in shards)


def test_with_full_validation_it_opens_the_pools_base_val_shards_too_and_still_no_test_or_novel_one(project):
    files, _ = opened_by_tune(project, "--set", "search.validation=full")
    shards = {path for path in files if path.endswith(".tar")}
    assert "digits/pool/val-base-000000.tar" in shards
    assert {path for path in shards if "pool" in path} == {"digits/pool/val-base-000000.tar"}
    assert not [path for path in shards if "novel" in path or "test" in path]
