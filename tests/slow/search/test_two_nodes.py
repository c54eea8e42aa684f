"""The search on a real cluster of two nodes, the second without repository, data or shared file system."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.slow.search.gate import Gate
from tests.support.processes import PATIENCE
from tests.support.two_nodes import HEAD, POSSIBLE, SECOND, two_nodes
from tests.support.workspace import BIN, ROOT, make_workspace, prepare_digits, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="network namespaces need root and iproute2"),
    pytest.mark.timeout(1800),  # they wait for one another
]
TRIALS, PARTITIONS, CPUS = 16, 2, 2
SETTINGS = {"trials": TRIALS, "searcher": "random", "concurrent": None}
SEARCH = {"trials": 4, "partitions": 1, "searcher": "random", "scheduler": "none", "concurrent": None, "enabled": True}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with two_nodes(tmp_path_factory.mktemp("cluster"), cpus=CPUS) as started:
        yield started


@pytest.fixture
def gate(cluster):
    gate = Gate(2 * CPUS, HEAD)
    yield gate
    gate.open()


def start(cluster, folder: Path, gate: Gate) -> subprocess.Popen:
    options = [
        "--partitions",
        str(PARTITIONS),
        "--search",
        json.dumps(SETTINGS),
        "--gate",
        gate.address,
    ]
    command = [sys.executable, "-m", "tests.slow.search.search_driver", "--address", cluster.address, *options]
    variables = {**cluster.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(driver: subprocess.Popen) -> list[dict]:
    out, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, said
    return json.loads(out)


def by_node(records: list[dict]) -> Counter:
    return Counter(int(scores["node"]) for record in records for scores in record["scores"])


def whole(records: list[dict]) -> list[dict]:
    return [one for one in records if one["state"] == "failed" or len(one["scores"]) == PARTITIONS]


def test_a_real_search_needs_nothing_on_the_second_node_and_writes_the_file_that_one_machine_writes(
    tmp_path, cluster, ray_cluster
):
    project = make_workspace(tmp_path / "project", methods=["mmrl"], shots=[2], seeds=[1, 2], train={"epochs": 2},
                             search=SEARCH)  # fmt: skip
    prepare_digits(project, seeds=(1, 2))
    search_on(ray_cluster, project, "alone.json")
    run(project, str(BIN / "mmrl"), "clean")
    search_on(cluster, project, "together.json")
    assert cluster.sees("/tmp/mmrl-features")  # it trained there, and kept what all its trials share
    assert (project / "together.json").read_text() == (project / "alone.json").read_text()


def search_on(cluster, project: Path, out: str) -> None:
    """A trial a node at a time."""
    settings = (f"cluster.address={cluster.address}", f"cluster.cpus_per_trial={CPUS}")
    command = [str(BIN / "mmrl"), "tune", "--dataset", "digits", "--method", "mmrl", "--out", out]
    command += [part for one in settings for part in ("--set", one)]
    done = subprocess.run(command, cwd=project, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_second_node_doubles_what_runs_side_by_side_and_its_death_only_costs_what_ran_there(tmp_path, cluster, gate):
    assert not cluster.sees(ROOT / "params.yaml") and not cluster.sees(tmp_path)
    driver = start(cluster, tmp_path, gate)
    assert gate.let_in_until(lambda: True, driver) == {HEAD: CPUS, SECOND: CPUS}
    records = tmp_path / ".mmrl/searches/simulated"
    gate.let_in_until(lambda: len(list(records.glob("*.json"))) > 3 * CPUS, driver)
    cluster.end_second()
    gate.open()
    found = finish(driver)
    assert len(whole(found)) == TRIALS and by_node(found)[1] > by_node(found)[2] > 0
