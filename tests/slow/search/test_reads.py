"""What a search opens: an audit hook in every process it starts writes down each file opened below data/."""

import os
import subprocess
import uuid

import pytest

from tests.support.ray_cluster import started
from tests.support.workspace import BIN, make_workspace, prepare_digits

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
def watched(tmp_path_factory):
    """A project, and a cluster whose processes write down what they open, in `opened.txt`."""
    folder = make_workspace(
        tmp_path_factory.mktemp("project"), methods=["mmrlpp"], shots=[2], seeds=[1, 2], train={"epochs": 1},
        search={"trials": 1, "partitions": 1},
    )  # fmt: skip
    prepare_digits(folder, seeds=(1, 2))
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    watch = {"PYTHONPATH": str(folder / "hook"), "WATCHED": str(folder / "data")}
    with started(1, **watch, OPENED=str(folder / "opened.txt")) as cluster:
        yield folder, cluster


def opened_by_tune(folder, cluster, *settings) -> tuple[set[str], int]:
    """The files below data/ that `mmrl tune` opened, and how many processes the hook was in."""
    log = folder / "opened.txt"
    log.write_text("")
    options = [part for one in (f"cluster.address={cluster.address}", *settings) for part in ("--set", one)]
    tune = [str(BIN / "mmrl"), "tune", "--dataset", "digits", "--method", "mmrlpp"]
    command = [*tune, *options, "--out", f"{uuid.uuid4().hex}.json"]
    done = subprocess.run(command, cwd=folder, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    return {path for _, path in lines if path != "started"}, len({process for process, _ in lines})


def test_the_search_opens_few_shot_items_of_base_classes_and_nothing_else(watched):
    files, processes = opened_by_tune(*watched)
    folders = [f"digits/2shot-seed{seed}" for seed in (1, 2)]
    shards = {f"{folder}/{split}-base-000000.tar" for folder in folders for split in ("train", "val")}
    assert files == shards | {f"{folder}/manifest.json" for folder in folders}
    assert processes >= 3  # the command, the ledger's and a worker: the hook is where the trials run
    assert all(os.path.exists(watched[0] / "data" / path.replace("base", "novel")) for path in shards)


def test_with_full_validation_it_opens_the_pools_base_val_shards_too_and_still_no_test_or_novel_one(watched):
    files, _ = opened_by_tune(*watched, "search.validation=full")
    shards = {path for path in files if path.endswith(".tar")}
    assert "digits/pool/val-base-000000.tar" in shards
    assert {path for path in shards if "pool" in path} == {"digits/pool/val-base-000000.tar"}
    assert not [path for path in shards if "novel" in path or "test" in path]
