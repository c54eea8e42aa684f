"""`mmrl backup` and `mmrl restore` of a real sqlite store with registered versions."""

import hashlib
import io
import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flows.maintenance.backup import backup
from flows.maintenance.restore import restore
from flows.registry import promotion, versions
from flows.tracking import schema, store
from flows.tracking.places import settle
from mmrl_core.errors import Failed
from mmrl_core.files import sha256_file
from tests.support import schemas, serving
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
    folder = tmp_path / "new a%20b"  # what is no escape in a path is one in a location
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("params.yaml", "saved.tar"):
        shutil.copy(made / name, folder)
    return folder


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
    assert not list(Path(".mmrl/aside").glob("*/*"))


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
    assert not Path("new.tar").exists() and not list(Path(".mmrl/aside").glob("*"))


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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_manifest(versions="none"), "is not as `mmrl backup` writes it"),
        (with_manifest(versions=[None]), "names no version and folder"),
        (with_manifest(versions=[]), "has no files of version 1"),
        (with_manifest(kind="oracle"), "is not as `mmrl backup` writes it"),
        (with_manifest(sha256=[]), "the sums in manifest.json are no table"),
        (with_version(folder="/etc"), "names no version and folder"),
        (with_version(folder="artifacts/../../../etc"), "names no version and folder"),
        (with_version(folder="artifacts/9"), "has no files of its own for version 2"),
        (with_version(version=1), "has no files of its own for version 1"),
        (with_version(name="it's"), "has no files of version 2"),
        (with_version(name=["x"]), "names no version and folder"),
        (without_adapter, f"{NAME}/2 does not hold the adapter that was registered"),
        (lambda folder, manifest: (folder / "database").write_bytes(b""), "is not that of an MLflow store"),
        (lambda folder, manifest: (folder / "database").write_bytes(b"x" * 9999), "no whole sqlite database"),
        (of_another_program, "is not that of an MLflow store (no table experiments)"),
        (elsewhere("file:///etc/cron.d"), "is below no folder of this store"),
        (elsewhere("/x/mlartifacts/../../etc"), "is below no folder of this store"),
        (elsewhere("s3://bucket/mlartifacts/x"), "is below no folder of this store"),
    ],
)
def test_an_archive_with_right_sums_that_is_not_ours_changes_nothing(copied, mmrl, change, says):
    rewrite(change)
    before, outside = digest(copied), digest(copied.parent)
    said = mmrl("restore", "saved.tar", "--overwrite", code=2)
    assert says in said and said.count("\n") == 1
    assert (digest(copied), digest(copied.parent)) == (before, outside)


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


def test_what_a_killed_one_left_goes_with_the_next(copied, mmrl):
    name = hashlib.sha256(str(Path("new.tar").absolute()).encode()).hexdigest()[:16]
    left = [Path(".mmrl/aside") / name / "content", Path(".mmrl/aside/restore/artifacts")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "copy").write_text("of the store")
    mmrl("backup", "new.tar")
    mmrl("restore", "new.tar", "--overwrite")
    assert not list(Path(".mmrl/aside").glob("*"))


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


def test_versions_that_mmrl_did_not_register_are_saved_too(copied):
    client = store.connect(store.absolute(LOCAL))
    (Path("mlartifacts") / "other").mkdir()
    (Path("mlartifacts") / "other" / "weights").write_bytes(b"theirs")
    client.create_registered_model("it's another's")
    client.create_model_version("it's another's", Path("mlartifacts/other").absolute().as_uri())
    assert backup(store.absolute(LOCAL), Path("all.tar"))["versions"] == 3
    shutil.rmtree("mlartifacts")
    restore(Path("all.tar"), store.absolute(LOCAL), overwrite=True)
    assert (Path("mlartifacts") / "other" / "weights").read_bytes() == b"theirs"
    (Path("mlartifacts") / "other" / "weights").unlink()
    with pytest.raises(Failed, match="1 of 3 versions cannot be saved: version 1 of it's another's: it has no files"):
        backup(store.absolute(LOCAL), Path("again.tar"))


def test_an_older_store_is_saved_and_then_upgraded(saved, mmrl):
    schemas.make(store.absolute(LOCAL), schemas.before_last())
    before = Path("mlflow.db").read_bytes()
    mmrl("backup", "older.tar")
    assert Path("mlflow.db").read_bytes() == before
    assert "was made by an older MLflow" in mmrl("history", code=2)
    mmrl("backup", "before.tar", "--upgrade-store")
    assert schema.revision(store.absolute(LOCAL)) == schema.head()
    assert store.connect(store.absolute(LOCAL))
    Path("mlflow.db").unlink()
    said = mmrl("restore", "older.tar")
    assert said.startswith("restored older.tar") and "--upgrade-store" in mmrl.error
    assert schema.revision(store.absolute(LOCAL)) == schemas.before_last()


def test_an_archive_of_a_newer_mlflow_changes_nothing(saved, mmrl):
    def newer(folder: Path, manifest: dict) -> None:
        execute(folder / "database", f"UPDATE alembic_version SET version_num = '{schemas.NEWER}'")

    rewrite(newer)
    assert "of a newer MLflow" in mmrl("restore", "saved.tar", code=2)
    assert not Path("mlflow.db").exists()
