"""Backup and restore of a registry in a real PostgreSQL."""

import os
import shutil

import pytest

from flows.maintenance.backup import backup, restore
from flows.tracking.store import absolute
from mmrl_core.errors import UserError
from tests.support.postgres import PASSWORD, create_database, program
from tests.support.stores import files_of, fill

pytestmark = pytest.mark.slow


def test_a_registry_moves_to_an_empty_database_and_not_over_one_that_is_used(
    tmp_path, monkeypatch, postgres_port, mlflow_database
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{program('psql').parent}{os.pathsep}{os.environ['PATH']}")
    one, other = absolute(mlflow_database()), absolute(create_database(postgres_port))
    fill(one, (tmp_path / "artifacts").as_uri())
    assert backup(one, tmp_path / "saved.tar")["versions"] == 1
    assert PASSWORD.encode() not in (tmp_path / "saved.tar").read_bytes()
    before = files_of(one)
    shutil.rmtree(tmp_path / "artifacts")
    assert restore(tmp_path / "saved.tar", other) == {"versions": 1}
    assert files_of(other) == before and len(before) == 1
    with pytest.raises(UserError, match="is not empty") as refused:
        restore(tmp_path / "saved.tar", other)
    assert PASSWORD not in str(refused.value)
    restore(tmp_path / "saved.tar", other, overwrite=True)
    assert files_of(other) == before
