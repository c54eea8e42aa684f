from pathlib import Path

import pytest

from tests.support.serving import make_adapter


@pytest.fixture(scope="session")
def adapter(tmp_path_factory) -> Path:
    """An adapter that is not sure of its answers: a difference in pixels would show."""
    return make_adapter(tmp_path_factory.mktemp("adapter"), 0, std=0.05)


@pytest.fixture(scope="session")
def exported(adapter, tmp_path_factory) -> Path:
    """What `mmrl export` writes of it."""
    from mmrl_core.export import export_onnx
    from mmrl_core.predict import Predictor

    folder = tmp_path_factory.mktemp("exported")
    export_onnx(Predictor.load(adapter), folder)
    return folder
