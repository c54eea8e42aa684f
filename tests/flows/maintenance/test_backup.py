"""`mmrl backup` and `mmrl restore` of a real sqlite store with registered versions."""

import io
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flows.maintenance import databases
from flows.maintenance.backup import backup
from flows.maintenance.restore import restore
from flows.maintenance.staging import staging
from flows.registry import promotion, versions
from flows.tracking import schema, store
from flows.tracking.places import settle
from mmrl_core.errors import Failed, UserError
from mmrl_core.files import sha256_file
from tests.support import serving
from tests.support.registry import schemas
from tests.support.serving import NAME, URI, settings

LOCAL = "sqlite:///mlflow.db"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a store of two versions, and its backup `saved.tar`."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        Path("params.yaml").write_text(json.dumps(settings().model_dump(mode="json")))
        for seed in (1, 2):
            serving.promote(serving.register(seed))
        store.connect(store.absolute(LOCAL)).set_model_version_tag(NAME, "1", "note", "a\tb\\c\nd")
        assert backup(store.absolute(LOCAL), Path("saved.tar"))["versions"] == 2
    return folder


@pytest.fixture
def saved(made, tmp_path, monkeypatch):
    """A new folder with the settings and the archive alone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "saved.tar"):
        shutil.copy(made / name, tmp_path)
    return tmp_path


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """A copy of the folder with the store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copied"))
    settle(Path("mlflow.db").absolute())
    return tmp_path / "copied"


def state() -> tuple:
    """Aliases, tags and history of the store here, and each version's adapter as it loads."""
    client = store.connect(store.absolute(LOCAL), create=False)
    tags = versions.tags_by_version(client, NAME)
    loaded = {number: versions.load(f"models:/{NAME}/{number}").card["sha256"] for number in tags}
    return versions.versions_by_alias(client, NAME), tags, promotion.history(settings(), "digits"), loaded


def digest(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".lock"}  # fmt: skip


def rewrite(change: Callable[[Path, dict], None], name: str = "saved.tar") -> None:
    """Change an archive's files and manifest, with sums that are right again."""
    folder = Path("unpacked")
    with tarfile.open(name) as archive:
        archive.extractall(folder, filter="data")
    manifest = json.loads((folder / "manifest.json").read_text())
    change(folder, manifest)
    (folder / "manifest.json").unlink()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if isinstance(manifest["sha256"], dict):
        manifest["sha256"] = {str(path.relative_to(folder)): sha256_file(path) for path in files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(name, "w") as archive:
        for path in [*files, folder / "manifest.json"]:
            archive.add(path, str(path.relative_to(folder)))
    shutil.rmtree(folder)


def execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


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


def test_an_archive_is_never_written_over_and_a_missing_one_is_named(saved, mmrl):
    content = Path("saved.tar").read_bytes()
    assert "saved.tar exists" in mmrl("backup", "saved.tar", code=2)
    assert Path("saved.tar").read_bytes() == content
    assert "there is no archive nowhere.tar" in mmrl("restore", "nowhere.tar", code=2)
    assert "there is no MLflow store" in mmrl("backup", "other.tar", code=2)


def altered(folder: Path) -> None:
    [tensors] = folder.rglob("adapter.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\1")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder / "artifacts")


@pytest.mark.parametrize("damage", [altered, emptied, shutil.rmtree])
def test_damage_is_not_saved_but_named(copied, mmrl, damage):
    where = store.connect(store.absolute(LOCAL)).get_model_version_download_uri(NAME, "2")
    damage(Path(where.removeprefix("file://")))
    said = mmrl("backup", "new.tar", code=1)
    assert f"1 of 2 versions cannot be saved: version 2 of {NAME}: " in said and said.count("\n") == 1
    assert not Path("new.tar").exists() and not left()


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


def elsewhere(location: str) -> Callable[[Path, dict], None]:
    def change(folder: Path, manifest: dict) -> None:
        execute(folder / "database", f"UPDATE model_versions SET storage_location = '{location}' WHERE version = 2")

    return change


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


def test_what_is_no_archive_and_what_is_no_database_are_the_users_errors(saved, mmrl):
    Path("text.tar").write_text("not an archive")
    assert "is no backup that can be read" in mmrl("restore", "text.tar", code=2)
    server = "tracking.uri=http://127.0.0.1:1"
    assert "a backup needs the store's own database" in mmrl("backup", "other.tar", "--set", server, code=2)
    assert not Path("other.tar").exists()


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


def kill(event: str, *command: str) -> None:
    """Run `mmrl` until Python tells its audit hooks of this event, which is as soon as it has been imported."""
    code = f"""
import os, signal, sys
from flows.cli import main
from flows.maintenance import backup, restore
sys.argv = ["mmrl", *{command!r}]
sys.addaudithook(lambda event, arguments: event == {event!r} and os.kill(os.getpid(), signal.SIGKILL))
main()
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL


def left() -> list[Path]:
    return [path for path in Path.cwd().rglob(".mmrl-aside-*") if path.is_dir()]


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
    from concurrent.futures import ThreadPoolExecutor

    from flows.registry.locked_model import locked

    with ThreadPoolExecutor() as pool:
        with locked(settings(), "digits"):
            waiting = pool.submit(restore, Path("saved.tar"), store.absolute(LOCAL), overwrite=True)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=3)
        assert waiting.result(timeout=60) == {"versions": 2}
    assert f"another process is changing the registry (promotion-{NAME}); waiting for it" in capfd.readouterr().err


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
