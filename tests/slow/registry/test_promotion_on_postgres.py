"""Promotions from several processes against a registry in PostgreSQL."""

import pytest

from flows.registry import promotion, versions
from flows.registry.locked_model import locked
from flows.tracking.locks import exclusive
from flows.tracking.store import connect, store_uri
from mmrl_core.errors import UserError
from mmrl_core.evaluation.gate import Decision
from tests.support.postgres import cursor
from tests.support.registry.races import race_then_kill_a_holder
from tests.support.serving import NAME, register, settings

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path, monkeypatch, mlflow_database):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database())
    connect(store_uri()).create_experiment("digits", artifact_location=(tmp_path / "artifacts").as_uri())
    connect(store_uri()).create_experiment("promotions", artifact_location=(tmp_path / "decisions").as_uri())
    return store_uri()


def test_racing_promotions_leave_one_champion_and_a_true_history_and_a_killed_holder_no_lock(store, tmp_path):
    race_then_kill_a_holder(store, tmp_path)
    with exclusive(store, "x", 30):
        pass


def lose_the_lock(database: str) -> None:
    """What a restart of the server does to the session that holds it."""
    with cursor(database) as server:
        server.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND granted")


def test_a_promotion_that_lost_its_lock_moves_nothing_and_what_it_intended_is_not_lost(store):
    for seed in range(3):
        register(seed)
    promotion.promote(settings(), "digits", 1, force="test")
    lost = "lock on the registry .* was lost"
    database = store.replace("+psycopg2", "")
    with locked(settings(), "digits") as model:
        lose_the_lock(database)
        promotion.promote(settings(), "digits", 3, force="meanwhile")  # would wait if the lock was still held
        with pytest.raises(UserError, match=lost):
            model.apply(2, Decision("forced", ["late"], {}), {"champion": 2}, {}, [])
    assert versions.versions_by_alias(connect(store), NAME) == {"champion": 3, "previous": 1}
    assert [past.version for past in promotion.history(settings(), "digits")] == [1, 3]
    with exclusive(store, "x") as held:
        held.check()
        lose_the_lock(database)
        with pytest.raises(UserError, match=lost):
            held.check()
