"""A store with two registered versions, and its backup."""

import json
import shutil
from pathlib import Path

import pytest

from flows.maintenance.backup import backup
from flows.tracking import store
from flows.tracking.places import settle
from tests.support import serving
from tests.support.registry.local_store import LOCAL
from tests.support.serving import NAME, settings


@pytest.fixture(scope="session")
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
