"""`mmrl backup` and `mmrl restore` of a real sqlite store with a registered version."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from flows.maintenance.backup import backup
from flows.tracking import store
from tests.support.stores import files_of, fill

STORE = "sqlite:///mlflow.db"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a store of one version and its backup `saved.tar`."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        Path("params.yaml").write_text("datasets: [digits]\nmethods: [mmrl]\nshots: [1]\nseeds: [1]\n")
        fill(store.absolute(STORE))
        assert backup(store.absolute(STORE), Path("saved.tar"))["versions"] == 1
    return folder


@pytest.fixture
def saved(made, tmp_path, monkeypatch):
    """A new folder with the settings and the archive alone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "saved.tar"):
        shutil.copy(made / name, tmp_path)
    return tmp_path


def test_a_lost_store_comes_back_with_its_alias_and_the_versions_files(made, saved, monkeypatch, mmrl):
    monkeypatch.chdir(made)
    before = files_of(store.absolute(STORE))
    Path("mlflow.db").unlink()
    shutil.rmtree("mlartifacts")
    assert json.loads(mmrl("restore", "saved.tar", "--json")) == {"versions": 1}
    assert files_of(store.absolute(STORE)) == before and len(before) == 1
    assert {path.name for path in made.iterdir()} == {"mlflow.db", "mlartifacts", "params.yaml", "saved.tar", ".mmrl"}


def test_a_store_that_holds_something_is_replaced_only_when_told(saved, mmrl):
    mmrl("restore", "saved.tar")
    client = store.connect(store.absolute(STORE))
    client.create_registered_model("later")
    assert "is not empty" in mmrl("restore", "saved.tar", code=2)
    assert client.get_registered_model("later")
    mmrl("restore", "saved.tar", "--overwrite")
    assert [one.name for one in client.search_registered_models()] == ["digits"]


def test_an_archive_is_never_written_over(saved, mmrl):
    content = Path("saved.tar").read_bytes()
    assert "saved.tar exists" in mmrl("backup", "saved.tar", code=2)
    assert Path("saved.tar").read_bytes() == content


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


def test_what_is_no_archive_and_what_is_no_database_are_the_users_errors(saved, mmrl):
    Path("text.tar").write_text("not an archive")
    assert "is no backup that can be read" in mmrl("restore", "text.tar", code=2)
    server = "tracking.uri=http://127.0.0.1:1"
    assert "a backup needs the store's own database" in mmrl("backup", "other.tar", "--set", server, code=2)
    assert not Path("other.tar").exists()
