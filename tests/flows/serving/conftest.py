"""What the tests of serving share: an adapter that answers, a server that has it, a registry with two versions."""

import shutil
from collections.abc import Iterator

import pytest

from flows.tracking import store as tracking
from mmrl_core.predict import Predictor
from tests.flows.serving.listening import listening
from tests.support import serving
from tests.support.serving import ABSTAIN, app_of, make_adapter


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor.load(make_adapter(tmp_path_factory.mktemp("adapter"), 0, abstain=ABSTAIN))


@pytest.fixture(scope="module")
def address(predictor) -> Iterator[str]:
    """Of the application on a socket of loopback."""
    with listening(app_of(predictor)) as place:
        yield place.address


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store):
    """A registry with two versions of which the alias names the first."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path)
    versions = [serving.register(seed) for seed in (1, 2)]
    serving.promote(versions[0])
    return tracking.absolute("sqlite:///mlflow.db")
