"""Promotions from several machines through one MLflow server, which has no locks of its own."""

import pytest

from flows.tracking import queue
from flows.tracking.locks import exclusive
from flows.tracking.store import connect
from mmrl_core.errors import UserError
from tests.support.registry.races import race_then_kill_a_holder
from tests.support.servers import mlflow_server

pytestmark = pytest.mark.slow


def test_promotions_of_two_machines_wait_for_one_another_and_a_killed_one_for_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mlflow_server(tmp_path / "server", "sqlite:///server.db") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        race_then_kill_a_holder(url, tmp_path)
        monkeypatch.setattr(queue, "DEAD_SECONDS", 2 * queue.BEAT_SECONDS)
        with exclusive(url, "x", 120) as held:
            held.check()
            client = connect(url)
            [ticket] = client.search_runs([client.get_experiment_by_name(queue.EXPERIMENT).experiment_id])
            client.delete_run(ticket.info.run_id)  # taken for dead, as one that was suspended
            with pytest.raises(UserError, match="lock on the registry .* was lost"):
                held.check()
