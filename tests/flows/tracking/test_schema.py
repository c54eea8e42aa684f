"""Stores that another release of MLflow made, or another program: on sqlite, and on a real PostgreSQL."""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy.engine import make_url

from flows.tracking import schema
from flows.tracking.store import absolute, connect
from mmrl_core.errors import UserError
from tests.support.postgres import create_database
from tests.support.registry import schemas
from tests.support.registry.schemas import NEWER, OLDER, before_last, execute

VERSION = version("mlflow")
COMMANDS = [["history"], ["register"], ["promote"], ["rollback", "why"], ["predict", "one.png"],
            ["clean", "--older-than=1m"]]  # fmt: skip


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def empty(request, tmp_path, monkeypatch) -> str:
    """The URI of a database without tables."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        return absolute("sqlite:///mlflow.db")
    return absolute(create_database(request.getfixturevalue("postgres_port")))


def content(uri: str) -> object:
    """All that a command could change: a sqlite file's bytes, otherwise every column, and the revision."""
    file = Path(make_url(uri).database or "")
    columns = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    return file.read_bytes() if uri.startswith("sqlite") else (execute(uri, columns), schema.revision(uri))


@pytest.fixture
def predictable(project) -> Path:
    """A project in which every command comes as far as the store."""
    Image.new("RGB", (32, 32), "red").save("one.png")
    Path("mlflow.db").unlink(missing_ok=True)
    return project


def test_no_command_migrates_an_older_store_and_each_says_in_one_line_what_to_do(empty, predictable, mmrl, monkeypatch):
    schemas.make(empty)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty)
    before = content(empty)
    for command in COMMANDS:
        line = mmrl(*command, code=2)
        assert line.count("\n") == 1 and "of-the-superuser" not in line, command
        assert all(
            part in line for part in (OLDER, version("mlflow"), schema.head(), "mmrl backup FILE --upgrade-store")
        ), line
    assert content(empty) == before and schema.revision(empty) == OLDER


def test_a_store_one_release_back_is_upgraded_when_asked_and_keeps_what_it_holds(empty):
    assert schema.revision(empty) is None
    schemas.make(empty, before_last())
    execute(empty, "INSERT INTO registered_models (name) VALUES ('digits')")
    assert schema.revision(empty) == before_last() and schema.known(before_last())
    for _ in range(2):
        schema.upgrade(empty)
        assert schema.revision(empty) == schema.head()
        assert [model.name for model in connect(empty).search_registered_models()] == ["digits"]


def test_an_upgrade_that_fails_on_the_way_leaves_the_store_as_it_was_and_is_repeated(empty):
    schemas.make(empty)
    execute(empty, "CREATE TABLE issues (mine INTEGER)")  # which a later migration makes
    before = content(empty)
    with pytest.raises(UserError, match="issues.* already exists"):
        schema.upgrade(empty)
    assert content(empty) == before
    execute(empty, "DROP TABLE issues")
    schema.upgrade(empty)
    assert connect(empty).search_registered_models() == []


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ([f"UPDATE alembic_version SET version_num = '{NEWER}'"], f"revision {NEWER}, of a newer MLflow or another"),
        (["DELETE FROM alembic_version"], "tables without a revision of MLflow's"),
        ([f"INSERT INTO alembic_version VALUES ('{NEWER}')"], f"revision .*{NEWER}"),
    ],
    ids=["newer", "none", "two"],
)
def test_a_newer_store_is_left_alone_and_gets_its_line(empty, empty_store, made, line):
    if empty.startswith("sqlite"):
        shutil.copy(empty_store, "mlflow.db")
    else:
        connect(empty)
    execute(empty, *made)
    before = content(empty)
    with pytest.raises(UserError, match=line) as refused:
        connect(empty)
    with pytest.raises(UserError, match=line):
        schema.upgrade(empty)
    assert version("mlflow") in str(refused.value) and content(empty) == before


def test_nothing_is_made_in_the_database_of_another_program(empty):
    execute(empty, "CREATE TABLE orders (id INTEGER)")
    before = content(empty)
    with pytest.raises(UserError, match="name an empty database in tracking.uri"):
        connect(empty)
    assert content(empty) == before


def test_reading_a_revision_makes_no_database(empty):
    assert schema.revision(empty) is None and not Path("mlflow.db").exists()
    Path("mlflow.db").touch()
    assert schema.revision("sqlite:///mlflow.db") is None and Path("mlflow.db").stat().st_size == 0
