"""A folder with digits prepared and an empty MLflow store."""

import shutil
from pathlib import Path

import pytest

from flows.stages import prepare
from flows.tracking import store
from tests.support.registry.promotions import PARAMS


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
