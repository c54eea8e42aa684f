"""The search on a real cluster of two nodes, the second without repository, data or shared file system."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.processes import PATIENCE, wait_until
from tests.two_nodes import POSSIBLE, two_nodes
from tests.workspace import BIN, ROOT, make_workspace, prepare_digits, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="network namespaces need root and iproute2"),
    pytest.mark.timeout(1800),  # they wait for one another
]
TRIALS, PARTITIONS = 32, 2
SETTINGS = {"trials": TRIALS, "searcher": "random", "concurrent": None}


def start(cluster, folder: Path, seconds: float) -> subprocess.Popen:
    options = ["--partitions", str(PARTITIONS), "--seconds", str(seconds), "--search", json.dumps(SETTINGS)]
    command = [sys.executable, "-m", "tests.slow.search_driver", "--address", cluster.address, *options]
    variables = {**cluster.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(driver: subprocess.Popen) -> dict:
    out, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, said
    return json.loads(out)


def by_node(found: dict) -> Counter:
    return Counter(int(scores["node"]) for record in found["records"] for scores in record["scores"])


def whole(found: dict) -> list[dict]:
    return [one for one in found["records"] if one["state"] == "failed" or len(one["scores"]) == PARTITIONS]


def test_a_second_node_halves_a_search_and_its_death_only_costs_what_ran_there(tmp_path):
    (tmp_path / "shared").mkdir(), (tmp_path / "killed").mkdir()
    with two_nodes(tmp_path, cpus=2) as cluster:
        assert not cluster.sees(ROOT / "params.yaml") and not cluster.sees(tmp_path)
        found = finish(start(cluster, tmp_path / "shared", 2.0))
        shares = by_node(found)
        assert len(whole(found)) == TRIALS and set(shares) == {1, 2}
        assert sum(shares.values()) / max(shares.values()) >= 1.7  # sleeping trials: the time is the larger share
        driver = start(cluster, tmp_path / "killed", 0.25)
        records = tmp_path / "killed/.mmrl/searches/simulated"
        wait_until(lambda: len(list(records.glob("*.json"))) > 8, PATIENCE, lambda: "some trials")
        cluster.end_second()
        found = finish(driver)
        assert len(whole(found)) == TRIALS and by_node(found)[1] > by_node(found)[2]


def test_a_real_search_needs_nothing_on_the_second_node_and_writes_the_file_that_one_machine_writes(tmp_path):
    search = {"trials": 6, "partitions": 1, "searcher": "random", "scheduler": "none", "concurrent": None}
    project = make_workspace(tmp_path / "project", methods=["mmrl"], shots=[2], seeds=[1, 2], train={"epochs": 2},
                             search={**search, "enabled": True})  # fmt: skip
    prepare_digits(project, seeds=(1, 2))
    tune = [str(BIN / "mmrl"), "tune", "--dataset", "digits", "--method", "mmrl"]
    run(project, *tune)
    alone = (project / "results/digits/search/mmrl.json").read_text()
    run(project, str(BIN / "mmrl"), "clean")
    with two_nodes(tmp_path, cpus=1) as cluster:
        on_cluster = [*tune, "--set", f"cluster.address={cluster.address}", "--out", "elsewhere.json"]
        done = subprocess.run(on_cluster, cwd=project, env=cluster.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert cluster.sees("/tmp/mmrl-features")  # it trained there, and kept what all its trials share
    assert (project / "elsewhere.json").read_text() == alone
