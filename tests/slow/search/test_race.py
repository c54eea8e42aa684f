"""The race in a real Ray Tune run, on settings of known quality."""

import os
import signal
import subprocess
import sys

import pytest

from flows.cluster.connection import Needs, connected
from flows.settings.sections import ClusterSection, SearchSection
from flows.tuning.rounds import side_by_side
from mmrl_core.search.comparison import looks
from tests.slow.search.test_faults import comparable, done_twice, driver, lines
from tests.support.processes import trial_workers
from tests.support.ray_cluster import started
from tests.support.workspace import ROOT

pytestmark = pytest.mark.slow
RACE = {"scheduler": "race", "trials": 6}
PARTITIONS = 3  # of the driver


def test_what_is_behind_ends_after_the_first_look_and_a_killed_race_goes_on_where_it_was(tmp_path, ray_cluster):
    """The simulated scores have no noise: whoever is behind, is clearly so."""
    first = looks(PARTITIONS)[0]
    (tmp_path / "unbroken").mkdir()
    with driver(tmp_path / "unbroken", ray_cluster, **RACE) as search:
        records, _ = search.finish()
    scored = [one for one in records if one["state"] != "failed"]
    best = max(scored, key=lambda one: one["scores"][0]["log_likelihood"])
    assert best["state"] == "complete" and len(best["scores"]) == PARTITIONS
    others = [(one["state"], len(one["scores"])) for one in scored if one is not best]
    assert others == [("stopped", first)] * len(others) and len(others) > 1
    assert len(lines(tmp_path / "unbroken")) == first * len(scored) + PARTITIONS - first

    (tmp_path / "killed").mkdir()
    with driver(tmp_path / "killed", ray_cluster, held=True, **RACE) as search:
        search.wait_for(3)
        os.kill(trial_workers(search.token)[0], signal.SIGKILL)
        search.wait_for(first * len(scored))
        search.kill()
    with driver(tmp_path / "killed", ray_cluster, **RACE) as search:
        resumed, _ = search.finish()
    assert comparable(resumed) == comparable(records)
    assert len(done_twice(tmp_path / "killed")) <= 2  # what was under way at either kill


def test_what_goes_on_trains_in_as_many_jobs_as_there_are_places_for():
    """On a node of two cores and one GPU: in two, or in one where every trial needs the GPU."""
    with started(cpus=2, gpus=1) as cluster:
        assert [jobs(cluster, gpus) for gpus in (0, 1)] == [2, 1]


def jobs(cluster, gpus: int) -> int:
    command = [sys.executable, "-m", "tests.slow.search.test_race", cluster.address, str(gpus)]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def main(address: str, gpus: str) -> None:
    needs = Needs(1, int(gpus))
    with connected(ClusterSection(address=address), needs):
        found = side_by_side([{"train.lr": rate} for rate in (0.1, 0.2, 0.3)], SearchSection(concurrent=None), needs)
    print(len(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
