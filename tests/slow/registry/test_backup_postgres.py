"""Backup and restore of a registry in a real PostgreSQL."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import psycopg2
import pytest

from flows.maintenance import postgres
from flows.maintenance.backup import backup
from flows.maintenance.restore import restore
from flows.registry import promotion, versions
from flows.tracking import schema
from flows.tracking.store import absolute, connect
from mmrl_core.errors import Failed, UserError
from mmrl_core.files import sha256_file
from tests.support import serving
from tests.support.postgres import PASSWORD, create_database, cursor, program
from tests.support.registry import schemas
from tests.support.serving import NAME, settings

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path, monkeypatch, mlflow_database):
    """The URI of a registry with two versions, whose files lie in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{program('psql').parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := mlflow_database())
    client = connect(absolute(uri))
    for name in ("digits", "promotions"):
        client.create_experiment(name, artifact_location=(tmp_path / "artifacts" / name).as_uri())
    for seed in (1, 2):
        serving.promote(serving.register(seed))
    client.set_model_version_tag(NAME, "1", "note", "a\tb\\c\nd \\N")
    return absolute(uri)


def state(uri: str) -> tuple:
    os.environ["MLFLOW_TRACKING_URI"] = uri.replace("+psycopg2", "")
    client = connect(uri, create=False)
    tags = versions.tags_by_version(client, NAME)
    loaded = {number: versions.load(f"models:/{NAME}/{number}", uri).card["sha256"] for number in tags}
    return versions.versions_by_alias(client, NAME), tags, promotion.history(settings(), "digits"), loaded


def test_a_registry_moves_to_an_empty_database_and_not_over_one_that_is_used(store, tmp_path, postgres_port):
    other = absolute(create_database(postgres_port))
    before = state(store)
    assert backup(store, tmp_path / "saved.tar")["versions"] == 2
    assert PASSWORD.encode() not in (tmp_path / "saved.tar").read_bytes()
    shutil.rmtree(tmp_path / "artifacts")
    assert restore(tmp_path / "saved.tar", other) == {"versions": 2}
    assert state(other) == before and before[0] == {"champion": 2, "previous": 1}
    assert restore(tmp_path / "saved.tar", other) == {"versions": 2}  # as one that was killed at its end
    promotion.promote(settings(), "digits", 1, force="later")
    with pytest.raises(UserError, match="is not empty") as refused:
        restore(tmp_path / "saved.tar", other)
    assert PASSWORD not in str(refused.value)
    restore(tmp_path / "saved.tar", other, overwrite=True)
    assert state(other) == before


def test_the_programs_get_every_parameter_of_the_uri_and_nobody_sees_the_password(store, tmp_path, postgres_port):
    user, _, database = store.partition("@")
    with pytest.raises(UserError, match="pg_dump failed: .*SSL") as refused:
        backup(f"{user}@{database}?sslmode=require", tmp_path / "saved.tar")
    assert PASSWORD not in str(refused.value) and not (tmp_path / "saved.tar").exists()
    name = database.rpartition("/")[2]
    in_query = f"{user}@/{name}?host=127.0.0.1&port={postgres_port}&options=-c%20application_name%3Dbackup"
    assert backup(in_query, tmp_path / "saved.tar")["versions"] == 2


def test_a_transaction_of_somebody_else_is_told_and_changes_nothing(store, tmp_path, monkeypatch):
    backup(store, tmp_path / "saved.tar")
    before = state(store)
    monkeypatch.setattr(postgres, "PATIENCE", 1)
    with psycopg2.connect(store.replace("+psycopg2", "")) as other:
        other.cursor().execute("SELECT count(*) FROM registered_models")
        with pytest.raises(
            UserError, match="another connection has held the store's tables for 1 s; end its transaction"
        ):
            restore(tmp_path / "saved.tar", store, overwrite=True)
        other.rollback()
    assert state(store) == before


def sums(folder: Path) -> dict:
    return {path: sha256_file(path) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def rewrite(file: Path, content: bytes) -> Path:
    """An archive with another database, and sums that are right."""
    folder = file.with_suffix("")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    (folder / "database").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["database"] = sha256_file(folder / "database")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(other := folder.with_name("other.tar"), "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, str(path.relative_to(folder)))
    shutil.rmtree(folder)
    return other


def test_what_is_not_ours_changes_nothing(store, tmp_path):
    backup(store, tmp_path / "saved.tar")
    before = state(store)
    with tarfile.open(tmp_path / "saved.tar") as archive:
        dump = archive.extractfile("database").read()
    for content, says in (
        (b"DROP TABLE experiments; \\! touch seen", "was saved as SQL by an older release"),
        (b"PGDMP" + b"\0" * 999, "pg_restore failed"),
        (dump[:-999], "pg_restore failed"),
    ):
        other = rewrite(tmp_path / "saved.tar", content)
        files = sums(tmp_path)
        with pytest.raises(UserError, match=says):
            restore(other, store, overwrite=True)
        assert sums(tmp_path) == files and state(store) == before


def test_files_go_below_the_working_directory_or_where_the_caller_says(store, tmp_path, monkeypatch, postgres_port):
    saved, before = tmp_path / "saved.tar", state(store)
    backup(store, saved)
    empty = absolute(create_database(postgres_port))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is below no folder of this store; if they belong there, say so: --artifacts"):
        restore(saved, empty)
    restore(saved, empty, artifacts=[(tmp_path / "artifacts").as_uri()])
    assert state(empty) == before


def test_an_older_mlflows_database_is_saved_as_it_is_and_restored_only_into_an_empty_one(
    store, tmp_path, postgres_port, capfd
):
    older, empty = (absolute(create_database(postgres_port)) for _ in range(2))
    schemas.make(older, schemas.before_last())
    assert backup(older, tmp_path / "older.tar")["versions"] == 0
    with pytest.raises(UserError, match="restore into an empty database"):
        restore(tmp_path / "older.tar", store, overwrite=True)
    restore(tmp_path / "older.tar", empty)
    assert "is an older MLflow's; `mmrl backup FILE --upgrade-store` upgrades it" in capfd.readouterr().err
    assert schema.revision(older) == schema.revision(empty) == schemas.before_last()


def test_a_version_whose_files_are_gone_is_named(store, tmp_path):
    with cursor(store.replace("+psycopg2", "")) as server:
        server.execute("UPDATE model_versions SET storage_location = 'file:///etc/cron.d/x' WHERE version = 2")
    with pytest.raises(Failed, match=f"1 of 2 versions cannot be saved: version 2 of {NAME}: its folder .* is gone"):
        backup(store, tmp_path / "never.tar")
    assert not list(tmp_path.glob(".mmrl-aside-*"))
