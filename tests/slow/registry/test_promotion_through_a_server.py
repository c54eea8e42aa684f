"""Promotions from several machines through one MLflow server, which has no locks of its own."""

import os
import subprocess
import sys

import pytest

from flows.registry import promotion, versions
from flows.tracking import queue
from flows.tracking.locks import exclusive
from flows.tracking.store import connect
from mmrl_core.errors import UserError
from tests.slow.registry.test_promotion_on_postgres import HOLD, RACE
from tests.support.processes import PATIENCE
from tests.support.servers import mlflow_server
from tests.support.serving import NAME, register, settings
from tests.support.workspace import ROOT

pytestmark = pytest.mark.slow


def test_promotions_of_two_machines_wait_for_one_another_and_a_killed_one_for_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mlflow_server(tmp_path / "server", "sqlite:///server.db") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        for seed in range(3):
            register(seed)
        promotion.promote(settings(), "digits", 1)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        folders = [tmp_path / name for name in ("one", "other")]  # no folder in common
        for folder in folders:
            folder.mkdir()
        racing = [subprocess.Popen([sys.executable, "-c", RACE, version], cwd=folder, env=environment)
                  for version, folder in zip("23", folders, strict=True)]  # fmt: skip
        assert [one.wait(PATIENCE) for one in racing] == [0, 0]
        told = promotion.history(settings(), "digits")
        assert [one.champion for one in told] == [None, *(one.version for one in told[:-1])]
        aliases = versions.versions_by_alias(connect(url), NAME)
        assert aliases == {"champion": told[-1].version, "previous": told[-2].version}

        holder = subprocess.Popen([sys.executable, "-c", HOLD, url], env=environment, stdout=subprocess.PIPE, text=True)
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process has been changing the registry"), exclusive(url, "x", 1):
            pass
        holder.kill()
        holder.wait()
        monkeypatch.setattr(queue, "DEAD_SECONDS", 2 * queue.BEAT_SECONDS)
        with exclusive(url, "x", 120) as held:
            held.check()
            client = connect(url)
            [ticket] = client.search_runs([client.get_experiment_by_name(queue.EXPERIMENT).experiment_id])
            client.delete_run(ticket.info.run_id)  # taken for dead, as one that was suspended
            with pytest.raises(UserError, match="lock on the registry .* was lost"):
                held.check()
