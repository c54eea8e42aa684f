"""A search whose trial process, driver or disk fails: it goes on or resumes, and nothing that is done is done again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.tuning.ledger import Ledger
from tests.slow.search.gate import Gate
from tests.support.processes import PATIENCE, TOKEN, end_all, processes_with, trial_workers, wait_until
from tests.support.ray_cluster import RayCluster
from tests.support.workspace import ROOT, environment

pytestmark = pytest.mark.slow
TRIALS, PARTITIONS = 5, 3


class Driver:
    """The simulated search in `folder`, as a process of its own; without `cluster` it has its own one, too.

    Where it is `held`, evaluations go on only while somebody waits for them or for the end.
    """

    def __init__(self, folder: Path, cluster: RayCluster | None, variables: dict[str, str], held: bool, **search):
        self.folder, self.own = folder, uuid.uuid4().hex
        self.gate = Gate(search.get("concurrent", 1)) if held else None
        self.token = cluster.token if cluster else self.own  # of the trials' processes
        options = {"search": json.dumps({"trials": TRIALS, **search}), "partitions": str(PARTITIONS)}
        options |= {"address": cluster.address} if cluster else {}
        options |= {"gate": self.gate.address} if self.gate else {}
        command = [sys.executable, "-m", "tests.slow.search.search_driver"]
        command += [part for name, value in options.items() for part in (f"--{name}", value)]
        inherited = cluster.environment if cluster else environment()
        variables = {**inherited, TOKEN: self.own, "PYTHONPATH": str(ROOT), **variables}
        self.process = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def evaluations(self) -> list[str]:
        return lines(self.folder)

    def wait_for(self, count: int) -> None:
        """Until so many evaluations are done, and the next of them are waiting."""
        self.gate.let_in_until(lambda: len(self.evaluations()) >= count, self.process)

    def finish(self) -> tuple[list[dict], str]:
        """The records, and what it said on stderr."""
        self.let_in()
        out, said = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, said
        return json.loads(out), said

    def let_in(self) -> None:
        if self.gate:
            self.gate.open()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        wait_until(lambda: not processes_with(self.own), 20, lambda: "the end of its cluster")


@contextlib.contextmanager
def driver(
    folder: Path, cluster: RayCluster | None, variables: dict[str, str] = {}, held: bool = False, **search
) -> Iterator[Driver]:
    running = Driver(folder, cluster, variables, held, **search)
    try:
        yield running
    finally:
        running.let_in()
        end_all(running.own)
        running.process.communicate()


def lines(folder: Path) -> list[str]:
    path = folder / "evaluations.txt"
    return path.read_text().splitlines() if path.exists() else []


def done_twice(folder: Path) -> list[str]:
    return [line for line, count in Counter(lines(folder)).items() if count > 1]


def kept(folder: Path) -> set[str]:
    """Evaluations that the ledger holds: no kill may cost any of them."""
    records = Ledger(folder / ".mmrl/searches/simulated").all()
    found = {f"{record['params']} {index}" for record in records for index in range(len(record["scores"]))}
    assert found <= set(lines(folder))
    return found


def comparable(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, ray_cluster) -> list[dict]:
    folder = tmp_path_factory.mktemp("unbroken")
    with driver(folder, ray_cluster) as search:
        records, _ = search.finish()
    assert len(records) == TRIALS and not done_twice(folder)
    return comparable(records)


def test_a_killed_trial_process_costs_its_partition_and_a_killed_driver_costs_the_same(tmp_path, unbroken, ray_cluster):
    with driver(tmp_path, None, held=True) as search:
        search.wait_for(2)
        safe = kept(tmp_path)
        [worker] = trial_workers(search.token)
        assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, search.process.pid)
        os.kill(worker, signal.SIGKILL)
        search.wait_for(5)
        search.kill()
    safe, done = safe | kept(tmp_path), len(lines(tmp_path))
    with driver(tmp_path, ray_cluster) as search:
        records, _ = search.finish()
    assert comparable(records) == unbroken
    assert done < len(lines(tmp_path)) and safe.isdisjoint(done_twice(tmp_path))
    assert len(done_twice(tmp_path)) <= 2  # what was under way at either kill


def test_trials_side_by_side_resume_without_repeating_what_is_done(tmp_path, ray_cluster):
    settings = {"concurrent": 2, "scheduler": "asha", "trials": 8}
    with driver(tmp_path, None, held=True, **settings) as search:
        search.wait_for(7)
        search.kill()
    safe = kept(tmp_path)
    begun = {path.name for path in tmp_path.glob(".mmrl/searches/simulated/*.json")}
    with driver(tmp_path, ray_cluster, **settings) as search:
        records, _ = search.finish()
    assert len(records) == 8 and len(safe) >= 5  # two may have been under way
    assert safe.isdisjoint(done_twice(tmp_path)) and len(done_twice(tmp_path)) <= 2
    assert begun <= {path.name for path in tmp_path.glob(".mmrl/searches/simulated/*.json")}
    assert {record["state"] for record in records} <= {"complete", "stopped", "failed"}


@pytest.mark.endurance  # CI kills one within a trial
@pytest.mark.parametrize("after", [
    pytest.param(0, id="second trial"), pytest.param(PARTITIONS * (TRIALS - 2) + 1, id="last trial"),
])  # fmt: skip
def test_a_process_that_dies_as_it_is_handed_a_trial_changes_nothing(tmp_path, unbroken, ray_cluster, after):
    with driver(tmp_path, ray_cluster, held=True) as search:
        search.wait_for(after)
        (tmp_path / "fuse").touch()
        records, _ = search.finish()
    assert (tmp_path / "fuse.burnt").exists()
    assert comparable(records) == unbroken and not done_twice(tmp_path)


@pytest.mark.parametrize("concurrent", [2, pytest.param(1, marks=pytest.mark.endurance)])
def test_a_process_that_is_slow_to_end_a_trial_before_it_takes_the_next_costs_none(tmp_path, ray_cluster, concurrent):
    no_time = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "0"}
    with driver(tmp_path, ray_cluster, no_time, trials=1 + concurrent, concurrent=concurrent) as search:
        records, said = search.finish()
    assert "Could not re-use actor" in said
    assert [(one["state"], len(one["scores"])) for one in records] == [("complete", PARTITIONS)] * (1 + concurrent)


def test_a_trial_that_cannot_be_trained_fails_alone(tmp_path, ray_cluster):
    space = {"searcher": "random", "trials": 12, "concurrent": None, "seed": 3}
    with driver(tmp_path, ray_cluster, **space) as search:
        records, _ = search.finish()
    failed = [record for record in records if record["params"]["train.lr"] > 8e-3]
    assert failed and len(records) == 12
    assert all(one["state"] == "failed" and one["failure"] == "training diverged; lower train.lr" for one in failed)
    assert all(one["state"] == "complete" for one in records if one not in failed)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_costs_a_warning_and_the_search_goes_on(tmp_path, unbroken, ray_cluster):
    state = tmp_path / ".mmrl"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(state)], check=True)
    try:
        (state / "filler").write_bytes(bytes(200_000))
        with driver(tmp_path, ray_cluster, held=True) as search:
            search.wait_for(2)
            with contextlib.suppress(OSError), open(state / "rest", "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            records, said = search.finish()
        assert "warning: trials were not kept for a resume" in said and "No space left" in said
        assert comparable(records) == unbroken
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)
