"""A folder with digits prepared and an empty MLflow store, and one with a released champion."""

import shutil
from pathlib import Path

import pytest

from flows.registry import releases
from flows.stages import prepare
from flows.tracking import store
from flows.tracking.places import settle
from tests.support.registry.promotions import PARAMS, crown, promote, register


@pytest.fixture(scope="session")
def prepared_digits(tmp_path_factory) -> Path:
    """To be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "data/digits").mkdir(parents=True)
    prepare.prepare_pool(PARAMS, "digits", folder / "data/digits/pool")
    prepare.prepare_few_shot(PARAMS, "digits", 2, 1, folder / "data/digits/2shot-seed1")
    store.connect(f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture
def digits_project(prepared_digits, tmp_path, monkeypatch) -> Path:
    """A copy, as the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = shutil.copytree(prepared_digits, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def released_digits(prepared_digits, tmp_path_factory) -> Path:
    """To be copied: version 2 was promoted in place of 1, and released. Its bundle takes seconds to be made."""
    folder = shutil.copytree(prepared_digits, tmp_path_factory.mktemp("released") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        crown("bad")
        register("good")
        assert promote() == (2, "accepted")
        assert releases.release(PARAMS, "digits").created
    return folder


@pytest.fixture
def released_project(released_digits, tmp_path, monkeypatch) -> Path:
    """A copy, as the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = shutil.copytree(released_digits, tmp_path / "project")
    settle(folder / "mlflow.db")
    monkeypatch.chdir(folder)
    return folder
