import pytest

from tests.support.workspace import ADAPTED, BIN, make_workspace, run


@pytest.fixture(scope="session")
def adapted(tmp_path_factory):
    """A project on which `mmrl flow adapt` has run once, and what it printed. Who changes the project takes a copy."""
    folder = make_workspace(tmp_path_factory.mktemp("flow") / "project", dvc=True, **ADAPTED)
    return folder, run(folder, str(BIN / "mmrl"), "flow", "adapt")
