"""`mmrl tune` broken off and started again: the same file, MLflow told once, and no work where none is left."""

import json
import os
import signal
import subprocess
import uuid

import pytest

from flows.tracking import store
from tests.support.hold import Hold
from tests.support.processes import TOKEN, end_all, processes_with, wait_until
from tests.support.workspace import BIN, environment, make_workspace, prepare_digits, run, write_params

pytestmark = pytest.mark.slow
TUNE = [str(BIN / "mmrl"), "tune", "--dataset", "digits", "--method", "mmrl"]
RESULT = "results/digits/search/mmrl.json"
SEARCH = {"enabled": True, "trials": 5, "partitions": 1, "second_objective": "trainable_parameters"}
SETTINGS = {"methods": ["mmrl"], "shots": [2], "seeds": [1, 2], "train": {"epochs": 1}, "search": SEARCH}
# Python imports this by itself at start-up: it tells at the end which of the heavy packages were loaded.
WATCH = """
import atexit, os, sys
names = [name for name in ("torch", "ray", "mlflow") if name]
atexit.register(lambda: open(os.environ["LOADED"], "a").write(" ".join(n for n in names if n in sys.modules) + "\\n"))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, ray_cluster):
    """A project in which a search was killed when the first four, which are one job, were whole; then started again."""
    folder = make_workspace(tmp_path_factory.mktemp("project"), **SETTINGS)
    prepare_digits(folder, seeds=(1, 2, 3))
    token = uuid.uuid4().hex
    hold = Hold(folder / "hold", "*/.mmrl/searches/*/trials/*", after=5)
    variables = {**environment(), **hold.environment, TOKEN: token}
    search = subprocess.Popen(TUNE, cwd=folder, env=variables, stderr=subprocess.DEVNULL)
    try:
        hold.wait(search)
        assert len(ended(folder)) == 4
        os.kill(search.pid, signal.SIGKILL)
        search.wait()
        wait_until(lambda: not processes_with(token), 20, lambda: "the end of its cluster")
    finally:
        end_all(token)
    assert status_of_runs(folder)["parent"] == ["RUNNING"]
    before = {path: path.read_bytes() for path in ended(folder)}
    write_params(folder, **SETTINGS, cluster={"address": ray_cluster.address})
    said = tune(folder, ray_cluster).stderr
    assert "going on from" in said and all(path.read_bytes() == content for path, content in before.items())
    return folder


def tune(folder, cluster, *options: str, **variables: str) -> subprocess.CompletedProcess:
    env = {**cluster.environment, **variables}
    done = subprocess.run([*TUNE, *options], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def ended(folder) -> list:
    """Files of the trials that are through."""
    found = []
    for path in folder.glob(".mmrl/searches/digits/mmrl/*/trials/*.json"):
        text = path.read_text()
        found += [path] if '"running"' not in text else []
    return found


def status_of_runs(folder) -> dict[str, list[str]]:
    client = store.connect(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("digits").experiment_id
    found = {"parent": [], "child": []}
    for one in client.search_runs([experiment]):
        found["child" if "mlflow.parentRunId" in one.data.tags else "parent"].append(one.info.status)
    return found


def test_mlflow_shows_one_parent_and_a_child_a_trial_and_none_left_running(project):
    trials = json.loads((project / RESULT).read_text())["trials"]
    assert len(trials) == SEARCH["trials"]
    assert status_of_runs(project) == {"parent": ["FINISHED"], "child": ["FINISHED"] * len(trials)}


def test_the_file_is_that_of_an_unbroken_search_that_could_not_reach_mlflow(project, ray_cluster):
    resumed = (project / RESULT).read_bytes()
    run(project, str(BIN / "mmrl"), "clean")
    said = tune(project, ray_cluster, MLFLOW_TRACKING_URI="http://127.0.0.1:9").stderr
    assert said.count("warning: the search goes on untracked") == 1
    assert (project / RESULT).read_bytes() == resumed


def test_a_search_that_is_through_costs_no_cluster_and_no_training(project):
    before = (project / RESULT).read_bytes()
    run(project, *TUNE)  # MLflow did not answer at the end of the last one: it is told now
    trials = len(json.loads(before)["trials"])
    assert status_of_runs(project) == {"parent": ["FINISHED"], "child": ["FINISHED"] * trials}
    (project / RESULT).unlink()
    hook, loaded = project / "hook", project / "loaded.txt"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(WATCH)
    variables = {**environment(), "PYTHONPATH": str(hook), "LOADED": str(loaded)}
    subprocess.run(TUNE, cwd=project, env=variables, check=True, capture_output=True)
    assert loaded.read_text() == "\n"  # one process, which loaded none of them
    assert (project / RESULT).read_bytes() == before


def test_the_pareto_front_and_the_distance_to_the_published_setting_are_in_the_file(project):
    found = json.loads((project / RESULT).read_text())
    front = [found["trials"][index] for index in found["pareto_front"]]
    assert front and [one["trainable_parameters"] for one in front] == sorted(
        one["trainable_parameters"] for one in front
    )
    ahead = found["ahead_of"]
    assert {found["trials"][one["trial"]]["params"] != found["choice"] for one in ahead.values()} == {True}
    assert all(one["se"] >= 0 for one in ahead.values())  # the choice may be behind: by less than can be told


def test_the_choice_is_confirmed_on_seeds_that_the_search_did_not_see(project, ray_cluster):
    found = json.loads(tune(project, ray_cluster, "--confirm", "3", "--json").stdout)
    assert found["divisions"] == 1 and set(found["ahead"]) == {"log_likelihood", "harmonic_mean"}
    assert found["choice"] != found["published"] or found["same"]
    assert "seed 1 was searched on" in run(project, *TUNE, "--confirm", "1", check=False).stderr
