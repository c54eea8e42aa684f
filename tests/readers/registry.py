"""Registered versions, archives and databases of stores, decisions."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

from mlflow.entities import Run, RunData, RunInfo, RunTag

from flows.maintenance import archive, databases
from flows.registry import decisions, promotion
from flows.registry.model_files import check_model
from flows.tracking.places import settle
from mmrl_core.errors import UserError
from mmrl_core.method.adapter_card import CARD
from tests.readers.damage import Reader, damaged_bytes, damaged_json
from tests.readers.weights import ADAPTER

# Registered versions, archives, databases.


def make_model(folder: Path) -> None:
    shutil.copytree(ADAPTER.parents[1], folder, dirs_exist_ok=True)


def read_model(folder: Path) -> None:
    check_model(folder, json.loads((ADAPTER / CARD).read_text())["sha256"], "pets/1")


def make_archive(folder: Path) -> None:
    content = folder / "content"
    (content / "artifacts/0").mkdir(parents=True)
    (content / "artifacts/0/MLmodel").write_text("x")
    (content / "database").write_bytes(b"x")
    one = databases.SavedVersion("default", "pets", 1, None, "file:///pets/1")
    archive.pack(content, folder / "backup.tar", "sqlite", "x", [one])
    shutil.copy(content / "manifest.json", folder / "manifest.json")


def read_archive(folder: Path) -> None:
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
    (folder / "unpacked").mkdir()
    archive.unpack(folder / "backup.tar", folder / "unpacked")


def read_manifest_of_archive(folder: Path) -> None:
    """In an archive that is whole otherwise."""
    import tarfile

    (folder / "backup.tar").unlink(missing_ok=True)
    shutil.copy(folder / "manifest.json", folder / "content/manifest.json")
    with tarfile.open(folder / "backup.tar", "w") as tar:
        for path in sorted(path for path in (folder / "content").rglob("*") if path.is_file()):
            tar.add(path, str(path.relative_to(folder / "content")))
    read_archive(folder)


TABLES = """
CREATE TABLE alembic_version (version_num TEXT);
INSERT INTO alembic_version VALUES ('1');
CREATE TABLE experiments (experiment_id INTEGER, artifact_location TEXT);
INSERT INTO experiments VALUES (0, 'file:///elsewhere/mlartifacts/0');
CREATE TABLE runs (run_uuid TEXT, artifact_uri TEXT);
INSERT INTO runs VALUES ('x', 'file:///elsewhere/mlartifacts/0/x');
CREATE TABLE logged_models (model_id TEXT, artifact_location TEXT);
CREATE TABLE registered_models (name TEXT);
INSERT INTO registered_models VALUES ('pets');
CREATE TABLE model_versions (workspace TEXT, name TEXT, version INTEGER, current_stage TEXT, source TEXT,
                             storage_location TEXT);
INSERT INTO model_versions VALUES ('default', 'pets', 1, 'None', 'file:///elsewhere/mlartifacts/0/x', NULL);
CREATE TABLE model_version_tags (workspace TEXT, name TEXT, version INTEGER, key TEXT, value TEXT);
INSERT INTO model_version_tags VALUES ('default', 'pets', 1, 'adapter_sha256', 'x');
"""


def make_database(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("PRAGMA page_size = 512")
        connection.executescript(TABLES)


def read_database(folder: Path) -> None:
    for beside in ("-journal", "-wal", "-shm"):
        (folder / f"mlflow.db{beside}").unlink(missing_ok=True)
    databases.in_file("sqlite", folder / "mlflow.db")
    settle(folder / "mlflow.db")


DECISION = {
    "version": "2", "champion": "1", "verdict": "accepted", "reasons": '["better"]', "moved": "true",
    "intent": json.dumps({"alias": "champion", "before": 1, "aliases": {"champion": 2, "challenger": None},
                          "tags": {"2": {"gate": "x"}}, "adapters": {"2": "x"}}),
    "gate": json.dumps({"verdict": "refused", "reasons": ["worse"], "champion": None, "champion_sha256": None}),
}  # fmt: skip


def make_decision(folder: Path) -> None:
    (folder / "tags.json").write_text(json.dumps(DECISION))


def read_decision(folder: Path) -> None:
    """Tags are text, whatever they say."""
    try:
        tags = {str(key): str(value) for key, value in json.loads((folder / "tags.json").read_bytes()).items()}
    except (ValueError, AttributeError, RecursionError):
        return
    run = Run(
        RunInfo("0" * 32, "1", "x", "RUNNING", 0, None, "active"), RunData(tags=[RunTag(*tag) for tag in tags.items()])
    )
    with contextlib.suppress(UserError):
        decisions._past_decision(run)
    if tags.get("intent"):
        with contextlib.suppress(UserError):
            decisions._intent(run, tags["intent"])
    promotion._declined_before(tags, {"champion": None})


def make_intent(folder: Path) -> None:
    (folder / "intent.json").write_text(DECISION["intent"])


def read_intent(folder: Path) -> None:
    run = Run(RunInfo("0" * 32, "1", "x", "RUNNING", 0, None, "active"), RunData())
    text = (folder / "intent.json").read_bytes().decode(errors="replace")
    promotion._declined_before({"gate": text}, {"champion": None})
    intent = decisions._intent(run, text)
    assert all(isinstance(tag, str) for tags in intent["tags"].values() for tag in tags.values())


READERS = [
    Reader("MLmodel of a version", make_model, "MLmodel", damaged_bytes, read_model),
    Reader("adapter.json of a version", make_model, "artifacts/seed1/adapter.json", damaged_json, read_model),
    Reader("archive of a store", make_archive, "backup.tar", damaged_bytes, read_archive),
    Reader("manifest of an archive", make_archive, "manifest.json", damaged_json, read_manifest_of_archive),
    Reader("sqlite database of a store", make_database, "mlflow.db", damaged_bytes, read_database),
    Reader("tags of a decision", make_decision, "tags.json", damaged_json, read_decision),
    Reader("intent of a decision", make_intent, "intent.json", damaged_json, read_intent),
]
