"""`mmrl backup` of a real sqlite store with registered versions."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.maintenance.backup import backup
from flows.maintenance.restore import restore
from flows.maintenance.staging import staging
from flows.registry import versions
from flows.tracking import schema, store
from mmrl_core.errors import Failed
from tests.support import serving
from tests.support.registry import schemas
from tests.support.registry.local_store import LOCAL, altered, execute, kill, left
from tests.support.serving import NAME, URI


def test_an_archive_is_never_written_over_and_a_missing_one_is_named(saved, mmrl):
    content = Path("saved.tar").read_bytes()
    assert "saved.tar exists" in mmrl("backup", "saved.tar", code=2)
    assert Path("saved.tar").read_bytes() == content
    assert "there is no archive nowhere.tar" in mmrl("restore", "nowhere.tar", code=2)
    assert "there is no MLflow store" in mmrl("backup", "other.tar", code=2)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder / "artifacts")


@pytest.mark.parametrize("damage", [altered, emptied, shutil.rmtree])
def test_damage_is_not_saved_but_named(copied, mmrl, damage):
    where = store.connect(store.absolute(LOCAL)).get_model_version_download_uri(NAME, "2")
    damage(Path(where.removeprefix("file://")))
    said = mmrl("backup", "new.tar", code=1)
    assert f"1 of 2 versions cannot be saved: version 2 of {NAME}: " in said and said.count("\n") == 1
    assert not Path("new.tar").exists() and not left()


def test_what_a_killed_backup_left_goes_with_the_next_whatever_its_name(copied, mmrl):
    kill("os.rename", "backup", "new.tar")
    assert left() and not Path("new.tar").exists()
    mmrl("backup", "another.tar")
    assert not left()


def test_what_another_process_is_making_stays(tmp_path):
    with staging(tmp_path) as one, staging(tmp_path) as other:
        (one / "file").touch()
        assert other != one and (one / "file").exists()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def older(made, saved, mmrl):
    """The URI of a store with the same versions whose tables have the revision before this MLflow's."""
    mmrl("restore", "saved.tar")
    Path("mlflow.db").rename("newer.db")
    schemas.make(uri := store.absolute(LOCAL), schemas.before_last())
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("ATTACH 'newer.db' AS newer")
        for table in ("registered_models", "model_versions", "model_version_tags", "registered_model_aliases"):
            names = [
                {row[1] for row in database.execute(f"PRAGMA {one}.table_info({table})")} for one in ("main", "newer")
            ]
            columns = ", ".join(names[0] & names[1])
            database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}")
    Path("newer.db").unlink()
    return uri


def test_an_older_mlflows_store_is_saved_as_it_is_and_upgraded_only_when_told(older, mmrl):
    mmrl("backup", "older.tar")
    assert schema.revision(older) == schemas.before_last() != schema.head()
    mmrl("backup", "again.tar", "--upgrade-store")
    assert schema.revision(older) == schema.head()
    assert versions.load(URI).class_names == serving.CLASSES
    mmrl("restore", "again.tar", "--overwrite")
    assert "is an older MLflow's; `mmrl backup FILE --upgrade-store` upgrades it" in mmrl.error
    assert schema.revision(older) == schemas.before_last()
    next(Path("mlartifacts").rglob("adapter.safetensors")).unlink()
    mmrl("backup", "damaged.tar", "--upgrade-store", code=1)
    assert schema.revision(older) == schemas.before_last()


def test_what_an_mlflow_server_hands_out_is_saved_from_where_it_keeps_it(copied, mmrl, monkeypatch):
    old = Path("mlartifacts").absolute().as_uri()
    execute(
        Path("mlflow.db"),
        f"UPDATE model_versions SET storage_location = replace(storage_location, '{old}', 'mlflow-artifacts:')",
    )
    Path("mlartifacts").rename("kept")
    assert "is gone" in mmrl("backup", "new.tar", code=1)  # by default beside the database
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", "./kept")
    mmrl("backup", "new.tar")
    shutil.rmtree("kept")
    mmrl("restore", "new.tar", "--overwrite")
    assert len(list(Path("kept").rglob("adapter.safetensors"))) == 2


def test_links_and_unreadable_files_of_a_version_are_named(copied, mmrl):
    [where, _] = sorted(Path("mlartifacts").rglob("adapter.safetensors"))
    (where.parent / "link").symlink_to("nowhere")
    said = mmrl("backup", "new.tar", code=1)
    assert "1 of 2 versions cannot be saved: version " in said and "link cannot be read" in said
    assert said.count("\n") == 1


def test_versions_that_mmrl_did_not_register_are_saved_too(copied):
    client = store.connect(store.absolute(LOCAL))
    weights = Path("mlartifacts/other/data/weights")
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"theirs")
    client.create_registered_model("it's another's")
    client.create_model_version("it's another's", Path("mlartifacts/other").absolute().as_uri())
    assert backup(store.absolute(LOCAL), Path("all.tar"))["versions"] == 3
    shutil.rmtree("mlartifacts")
    restore(Path("all.tar"), store.absolute(LOCAL), overwrite=True)
    assert weights.read_bytes() == b"theirs"
    weights.unlink()
    with pytest.raises(Failed, match="1 of 3 versions cannot be saved: version 1 of it's another's: it has no files"):
        backup(store.absolute(LOCAL), Path("again.tar"))
