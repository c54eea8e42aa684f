"""`mmrl restore` into a real sqlite store, and what stops it or the backup halfway."""

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flows.maintenance import databases
from flows.maintenance.restore import restore
from flows.registry import versions
from flows.registry.locked_model import locked
from flows.tracking import store
from mmrl_core.errors import UserError
from tests.support import serving
from tests.support.processes import PATIENCE, wait_until
from tests.support.registry.local_store import LOCAL, altered, digest, elsewhere, kill, left, rewrite, state
from tests.support.serving import NAME, URI, settings


def test_a_lost_store_comes_back_whole_and_predicts(copied, mmrl):
    before = state()
    Path("mlflow.db").unlink()
    shutil.rmtree("mlartifacts")
    assert json.loads(mmrl("restore", "saved.tar", "--json")) == {"versions": 2}
    assert state() == before and before[0] == {"champion": 2, "previous": 1}
    Path("image.png").write_bytes(serving.picture())
    assert json.loads(mmrl("predict", "image.png", "--json"))
    assert not left()


def test_a_store_that_is_restored_to_another_folder_has_its_files_there(made, saved, mmrl):
    before = digest(made)
    mmrl("restore", "saved.tar")
    assert len(list(Path("mlartifacts").rglob("adapter.safetensors"))) == 2
    assert digest(made) == before
    assert versions.load(URI).class_names == serving.CLASSES


def test_a_store_that_holds_something_is_replaced_only_when_told(saved, mmrl):
    mmrl("restore", "saved.tar")
    client = store.connect(store.absolute(LOCAL))
    client.create_registered_model("later")
    assert "is not empty" in mmrl("restore", "saved.tar", code=2)
    assert client.get_registered_model("later")
    mmrl("restore", "saved.tar", "--overwrite")
    assert [one.name for one in client.search_registered_models()] == [NAME]


def test_a_restore_removes_no_file_but_those_of_the_versions_that_it_brings_back(copied, mmrl):
    Path("mlartifacts/digits/mine").write_text("not of the archive")
    rewrite(elsewhere(f"{Path('mlartifacts/digits').absolute().as_uri()}"))
    before = digest(copied)
    said = mmrl("restore", "saved.tar", "--overwrite", code=2)
    assert "is none of the files of version 2" in said and "move it away" in said
    assert digest(copied) == before


def test_an_archive_of_an_older_release_is_restored(saved, mmrl):
    def older(folder: Path, manifest: dict) -> None:
        del manifest["revision"]
        for entry in manifest["versions"]:
            del entry["adapter_sha256"]
            entry["version"] = str(entry["version"])
            model = (folder / entry["folder"]).rename(folder / "aside")
            (folder / entry["folder"]).mkdir()
            model.rename(folder / entry["folder"] / "artifacts")

    rewrite(older)
    mmrl("restore", "saved.tar")
    assert versions.load(URI).class_names == serving.CLASSES


def test_a_place_that_cannot_be_written_is_one_line(copied, mmrl):
    Path("file").write_text("where a folder should be")
    assert "the archive file/saved.tar could not be written: " in mmrl("backup", "file/saved.tar", code=1)
    said = mmrl("restore", "saved.tar", "--set", "tracking.uri=sqlite:///file/mlflow.db", code=1)
    assert "saved.tar could not be restored to" in said and said.count("\n") == 1


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from flows.cli import main
sys.argv = ["mmrl", *sys.argv[2:]]
main()
"""


def test_a_disk_that_is_full_leaves_nothing_behind_and_no_traceback(copied):
    before = digest(copied)
    size = Path("saved.tar").stat().st_size
    for limit, command in ((size // 2, ["backup", "new.tar"]), (99999, ["restore", "saved.tar", "--overwrite"])):
        done = subprocess.run([sys.executable, "-c", LIMITED, str(limit), *command], capture_output=True, text=True)
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1, done.stderr
    assert digest(copied) == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_restore_that_was_killed_late_ends_as_it_would_have(saved, mmrl):
    kill("shutil.rmtree", "restore", "saved.tar")
    assert Path("mlflow.db").exists() and left()
    assert json.loads(mmrl("restore", "saved.tar", "--json")) == {"versions": 2}
    assert not left() and state()[0] == {"champion": 2, "previous": 1}


@contextmanager
def used(*statements: str) -> Iterator[None]:
    """While another connection has a transaction open on the database."""
    with closing(sqlite3.connect("mlflow.db", isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement)
        yield


def test_a_database_that_another_process_holds_is_told_and_nothing_changes(copied, monkeypatch):
    monkeypatch.setattr(databases, "PATIENCE", 0.2)
    altered(sorted(Path("mlartifacts").rglob("artifacts"))[0])
    before = digest(copied)
    with used("BEGIN", "SELECT * FROM runs"), pytest.raises(UserError, match="database is locked; look whether"):
        restore(Path("saved.tar"), store.absolute(LOCAL), overwrite=True)
    with used("BEGIN EXCLUSIVE"), pytest.raises(UserError, match="database is locked; look whether"):
        databases.copy_sqlite(Path("mlflow.db"), Path("copy.db"))
    Path("copy.db").unlink(missing_ok=True)
    assert digest(copied) == before and not left()


HALF_WRITTEN = """
import os, sqlite3
connection = sqlite3.connect("mlflow.db")
connection.execute("PRAGMA cache_size = 1")
connection.execute("UPDATE model_version_tags SET value = 'half'")
connection.execute("CREATE TABLE half AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9999) "
                   "SELECT i, hex(randomblob(50)) FROM n")
os._exit(0)
"""


def test_what_a_killed_process_wrote_in_part_is_neither_saved_nor_restored(copied, mmrl):
    subprocess.run([sys.executable, "-c", HALF_WRITTEN], check=True)
    assert Path("mlflow.db-journal").stat().st_size and b"half" in Path("mlflow.db").read_bytes()
    shutil.copytree(".", "../lost")
    mmrl("backup", "new.tar")  # which looks at the adapters that tags name
    assert not Path("mlflow.db-journal").exists()
    os.chdir("../lost")
    Path("mlflow.db").unlink()  # and not what belongs to it
    mmrl("restore", "saved.tar")
    assert b"half" not in Path("mlflow.db").read_bytes() and not Path("mlflow.db-journal").exists()


def test_a_restore_waits_for_a_promotion_and_says_so(copied, capfd):
    says, said = f"another process is changing the registry (promotion-{NAME}); waiting for it", ""

    def told() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return says in said or waiting.done()

    with ThreadPoolExecutor() as pool:
        with locked(settings(), "digits"):
            waiting = pool.submit(restore, Path("saved.tar"), store.absolute(LOCAL), overwrite=True)
            wait_until(told, PATIENCE, lambda: said)
            assert says in said and not waiting.done()
        assert waiting.result(PATIENCE) == {"versions": 2}
