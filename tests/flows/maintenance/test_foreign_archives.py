"""Archives that are damaged, or that `mmrl backup` did not make."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.registry.local_store import digest, elsewhere, execute, rewrite
from tests.support.serving import NAME


@pytest.mark.parametrize("place", [0.25, 0.5, 0.9])
def test_a_damaged_archive_changes_nothing(saved, mmrl, place):
    content = bytearray(Path("saved.tar").read_bytes())
    with tarfile.open("saved.tar") as archive:
        database = archive.getmember("database")
    where = database.offset_data + int(place * database.size)
    content[where] ^= 255
    Path("saved.tar").write_bytes(content)
    assert "is damaged: database" in mmrl("restore", "saved.tar", code=2)
    assert not Path("mlflow.db").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/mmrl-outside", "artifacts/../../outside", "link", "hard"])
def test_paths_outside_and_links_are_refused_before_anything_is_changed(saved, mmrl, name):
    with tarfile.open("saved.tar", "a") as archive:
        member = tarfile.TarInfo(name)
        member.type = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}.get(name, tarfile.REGTYPE)
        member.linkname, member.size = "/etc/passwd", 1 if member.isreg() else 0
        archive.addfile(member, io.BytesIO(b"x"))
    assert "is no plain file below it" in mmrl("restore", "saved.tar", code=2)
    assert not Path("mlflow.db").exists() and not (saved.parent / "outside").exists()


def of_another_program(folder: Path, manifest: dict) -> None:
    (folder / "database").unlink()
    execute(folder / "database", "CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE flow (id TEXT)")


def without_adapter(folder: Path, manifest: dict) -> None:
    next((folder / "artifacts/1").rglob("adapter.safetensors")).write_bytes(b"")


def with_version(**values: object) -> Callable[[Path, dict], None]:
    def change(folder: Path, manifest: dict) -> None:
        manifest["versions"][1] |= values

    return change


def with_manifest(**values: object) -> Callable[[Path, dict], None]:
    def change(folder: Path, manifest: dict) -> None:
        manifest |= values

    return change


def with_database(*statements: str) -> Callable[[Path, dict], None]:
    return lambda folder, manifest: execute(folder / "database", *statements)


def with_file(name: str, content: bytes) -> Callable[[Path, dict], None]:
    def change(folder: Path, manifest: dict) -> None:
        (folder / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_manifest(versions="none"), "manifest.json versions: "),
        (with_manifest(versions=[None]), "manifest.json versions.0: "),
        (with_manifest(versions=[]), "has no files of version 1"),
        (with_manifest(kind="oracle"), "manifest.json kind: "),
        (with_manifest(sha256=[]), "manifest.json sha256: "),
        (with_version(folder="/etc"), "manifest.json versions.1.folder: "),
        (with_version(folder="artifacts/../../../etc"), "manifest.json versions.1.folder: "),
        (with_version(folder="artifacts/9"), "has no files of version 2"),
        (with_version(folder="artifacts/0"), "names a version or a folder twice"),
        (with_version(version=1), "names a version or a folder twice"),
        (with_version(version="9" * 5000), "manifest.json versions.1.version: "),
        (with_version(name="it's"), "has no files of version 2"),
        (with_version(name=["x"]), "manifest.json versions.1.name: "),
        (with_version(adapter_sha256="0" * 64), "has no files of version 2"),
        (without_adapter, f"{NAME}/2 does not hold the adapter that was registered"),
        (with_file("database", b""), "is not that of an MLflow store"),
        (with_file("database", b"x" * 9999), "no whole sqlite database"),
        (with_file("database-journal", b"undo"), "is no plain file below it"),
        (of_another_program, "is not that of an MLflow store (no table experiments)"),
        (with_database("UPDATE alembic_version SET version_num = 'newer'"), "was saved by a newer MLflow"),
        (with_database("DELETE FROM alembic_version"), "was saved by a newer MLflow"),
        (with_database("UPDATE model_versions SET version = 'x' WHERE version = 2"), "is not that of an MLflow store"),
        (with_database("UPDATE model_versions SET storage_location = '', source = x'00'"), "is not that of an MLflow"),
        (with_database("ALTER TABLE model_versions RENAME COLUMN name TO title"), "is not that of an MLflow store"),
        (elsewhere("file:///etc/cron.d"), "is below no folder of this store"),
        (elsewhere("/x/mlartifacts/../../etc"), "is below no folder of this store"),
        (elsewhere("s3://bucket/mlartifacts/x"), "is below no folder of this store"),
        (elsewhere("file://["), "is below no folder of this store"),
        (elsewhere("mlflow-artifacts:/../outside"), "is none below MLFLOW_ARTIFACTS_DESTINATION"),
    ],
)
def test_an_archive_with_right_sums_that_is_not_ours_changes_nothing(copied, mmrl, change, says):
    rewrite(change)
    before, outside = digest(copied), digest(copied.parent)
    said = mmrl("restore", "saved.tar", "--overwrite", code=2)
    assert says in said and said.count("\n") == 1
    assert (digest(copied), digest(copied.parent)) == (before, outside)


def test_what_is_no_archive_and_what_is_no_database_are_the_users_errors(saved, mmrl):
    Path("text.tar").write_text("not an archive")
    assert "is no backup that can be read" in mmrl("restore", "text.tar", code=2)
    server = "tracking.uri=http://127.0.0.1:1"
    assert "a backup needs the store's own database" in mmrl("backup", "other.tar", "--set", server, code=2)
    assert not Path("other.tar").exists()
