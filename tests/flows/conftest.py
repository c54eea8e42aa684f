"""A project that went through every stage once, and `mmrl` run in this process."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from flows import cli
from flows.project.progress import MARK, MARKED
from flows.tracking import store
from flows.tracking.places import settle
from tests.support.workspace import QUICK, make_workspace

RUN = ["--dataset", "digits", "--method", "mmrl", "--shots", "2", "--seed", "1"]
BASELINES = ["--dataset", "digits", "--shots", "2"]
PREPARE = [["fingerprint", "--dataset", "digits"], ["prepare", "--dataset", "digits"],
           ["prepare", "--dataset", "digits", "--shots", "2", "--seed", "1"]]  # fmt: skip


class Shell:
    """Runs `mmrl ...` in this process; gives what it printed, on stderr where it fails, and keeps both.

    But for how far it is: an error is one line all the same.
    """

    def __init__(self, capsys, monkeypatch):
        self.capsys, self.monkeypatch, self.out, self.error = capsys, monkeypatch, "", ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self.capsys.readouterr()
        self.monkeypatch.setattr("sys.argv", ["mmrl", *map(str, arguments)])
        self.monkeypatch.setenv(MARKED, "1")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        self.monkeypatch.delenv(MARKED)
        self.out, error = self.capsys.readouterr()
        self.error = "".join(line for line in error.splitlines(keepends=True) if not line.startswith(MARK))
        assert ended.value.code == code, (self.out, self.error)
        return self.out if code == 0 else self.error


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, worker_id):
    """A project with shards of two shots a class, and one adapter trained, tuned, evaluated and summarised.

    Whichever test process needs it first makes it, for all of them.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "prepared"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            prepare(folder)
    return folder


def prepare(folder: Path) -> None:
    make_workspace(folder, **QUICK, shots=[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stages = [["tune", *RUN[:4]], ["train", *RUN], ["evaluate", *RUN], ["fit-baselines", *BASELINES],
                  ["evaluate-baselines", *BASELINES], ["summarize"]]  # fmt: skip
        for command in [*PREPARE, *stages]:
            patch.setattr("sys.argv", ["mmrl", *command])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code == 0, command


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A database with MLflow's tables: creating them takes seconds, copying them none."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.connect(f"sqlite:///{database}")
    return database


@pytest.fixture
def project(prepared, tmp_path, monkeypatch):
    """A copy to break, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    settle(folder / "mlflow.db")  # or the first command says that the project was moved
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def mmrl(capsys, monkeypatch):
    return Shell(capsys, monkeypatch)
