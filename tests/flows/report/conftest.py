from pathlib import Path

import pytest

from tests.support.results import write_runs


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runs(folder):
    """The runs of a small matrix, whose results are in the working directory."""
    return write_runs()
