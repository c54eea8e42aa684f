"""MLflow's tables as another release of it made them, by its own migrations."""

from alembic import command
from sqlalchemy import create_engine, text

from flows.tracking.schema import _scripts

NEWER = "ffffffffffff"  # a revision that no MLflow has
OLDER = "c9d4e5f6a7b8"  # before several tables that MLflow 3.17 has


def before_last() -> str:
    """The revision before the installed MLflow's."""
    return str(_scripts().get_revision("head").down_revision)


def make(uri: str, revision: str = OLDER) -> None:
    """Make the tables of that revision in an empty database."""
    execute(uri)  # which makes a sqlite file
    _scripts()  # sets what MLflow reads when it is imported
    from mlflow.store.db import utils

    engine, config = create_engine(uri), utils._get_alembic_config(uri)
    utils.InitialBase.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def execute(uri: str, *statements: str) -> list:
    """The rows of the last of these statements."""
    engine, rows = create_engine(uri), []
    with engine.begin() as connection:
        for statement in statements:
            result = connection.execute(text(statement))
            rows = list(result) if result.returns_rows else []
    engine.dispose()
    return rows
