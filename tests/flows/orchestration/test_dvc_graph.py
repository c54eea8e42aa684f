import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zc.lockfile

from flows.orchestration.dvc_graph import StageFailed, run_stage, source_checks, stage_graph, stale_stages, transfer
from flows.processes.lifeline import Lifeline
from flows.project.progress import MARKED
from mmrl_core.errors import UserError
from tests.support.processes import PATIENCE

PIPELINE = """
stages:
  fingerprint:
    matrix: {dataset: "${datasets}"}
    cmd: cp raw/${item.dataset}.txt ${item.dataset}.source
    always_changed: true
    outs: [{"${item.dataset}.source": {cache: false}}]
  train:
    matrix: {dataset: "${datasets}", seed: "${seeds}"}
    cmd: python work.py ${item.dataset}-${item.seed}
    deps: ["${item.dataset}.source", weights.bin]
    outs: ["results/${item.dataset}-${item.seed}"]
  summarize:
    cmd: cat results/* > summary.txt
    deps: [results]
    outs: [summary.txt]
"""

WRITE = """
import pathlib, sys
pathlib.Path("results").mkdir(exist_ok=True)
pathlib.Path("results", sys.argv[1]).write_text("done")
print("trained", sys.argv[1])
"""
MEET = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
while not (os.path.exists("a-1") and os.path.exists("b-1")):
    time.sleep(0.02)
"""
HANG = """
import os, pathlib, time
pathlib.Path("part").write_text(str(os.getpid()))
os.rename("part", "pid")
time.sleep(600)
"""
HALFWAY = """
import os, sys
from flows.project.progress import progress
print("no room", file=sys.stderr)
with progress("train a-1", 2, what="epoch") as report:
    os._exit(3)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("dvc") / "project"
    (root / "raw").mkdir(parents=True)
    (root / "dvc.yaml").write_text(PIPELINE.replace("python", sys.executable))
    (root / "params.yaml").write_text("datasets: [a, b]\nseeds: [1, 2]\n")
    (root / "work.py").write_text(WRITE)
    (root / "weights.bin").write_text("weights")
    for dataset in "ab":
        (root / f"raw/{dataset}.txt").write_text(dataset)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    dvc(root, "init -q")
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    for command in ("add -q weights.bin", "repro -q"):
        dvc(root, command)
    return root


@pytest.fixture
def project(template, tmp_path):
    """A DVC project with every stage done: two datasets, two seeds."""
    return shutil.copytree(template, tmp_path / "project")


def dvc(root, command):
    subprocess.run([sys.executable, "-m", "dvc", *command.split()], cwd=root, check=True, capture_output=True)


def forget(root, *names):
    """Make trainings (by default a-1) stale, and DVC unable to restore them."""
    for name in names or ["a-1"]:
        (root / "results" / name).unlink()
    shutil.rmtree(root / ".dvc/cache")


def run(root, name="train@a-1", **options):
    with Lifeline() as lifeline:
        return run_stage(root, name, lifeline, **options)


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_graph_names_every_expanded_item_after_what_it_reads_and_no_data_source(project):
    graph = stage_graph(project)
    trainings = [f"train@{dataset}-{seed}" for dataset in "ab" for seed in (1, 2)]
    assert graph["fingerprint@a"] == []
    assert graph["train@b-2"] == ["fingerprint@b"]
    assert sorted(graph["summarize"]) == trainings
    order = list(graph)
    assert all(order.index(other) < order.index(name) for name, upstream in graph.items() for other in upstream)
    assert len(graph) == 2 + 4 + 1
    assert source_checks(project, graph) == ["fingerprint@a", "fingerprint@b"]


def test_only_what_follows_from_a_changed_source_is_stale(project):
    graph = stage_graph(project)
    checks = source_checks(project, graph)
    assert stale_stages(project, graph, checks) == set()
    assert stale_stages(project, graph) == set(graph)
    (project / "raw/a.txt").write_text("another photograph")
    run(project, "fingerprint@a")
    assert stale_stages(project, graph, checks) == {"train@a-1", "train@a-2", "summarize"}


def test_a_stage_runs_once_and_its_output_is_passed_on_line_by_line(project):
    forget(project)
    lines = []
    assert run(project, log=lines.append)
    assert "trained a-1" in lines
    assert "trained a-1" in (project / ".mmrl/logs/train@a-1.log").read_text().splitlines()
    assert not run(project)


def test_how_far_a_stage_is_is_shown_and_logged_and_is_not_why_it_failed(project):
    forget(project)
    (project / "work.py").write_text(HALFWAY)
    shown, env = [], {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), MARKED: "1"}
    with pytest.raises(StageFailed, match=r"train@a-1 failed \(exit 3\): no room"):
        run(project, env=env, show=shown.append)
    assert shown == ["train a-1: epoch 0/2"]
    assert "train a-1: epoch 0/2" in (project / ".mmrl/logs/train@a-1.log").read_text().splitlines()


def test_a_crash_is_reported_with_the_stage_and_the_last_line_of_its_traceback(project):
    forget(project)
    (project / "work.py").write_text("print('step 1')\nraise MemoryError('no room for 12 GB')")
    with pytest.raises(StageFailed, match=r"stage train@a-1 failed \(exit 1\): MemoryError: no room .*train@a-1\.log"):
        run(project)


def test_a_users_mistake_keeps_the_commands_own_line(project):
    forget(project)
    (project / "work.py").write_text("import sys\nprint('data/raw/a lacks images/', file=sys.stderr)\nsys.exit(2)")
    with pytest.raises(UserError, match="^stage train@a-1: data/raw/a lacks images/$"):
        run(project)


def test_an_error_of_dvcs_own_is_reported(project):
    (project / "weights.bin").unlink()
    forget(project)
    with pytest.raises(StageFailed, match=r"train@a-1 failed: .*weights\.bin"):
        run(project)


def test_no_pipeline_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="dvc dag"):
        stage_graph(tmp_path)


def test_independent_stages_run_at_the_same_time(project):
    (project / "work.py").write_text(MEET + WRITE)
    forget(project, "a-1", "b-1")
    with Lifeline() as lifeline, ThreadPoolExecutor(2) as pool:
        ran = [pool.submit(run_stage, project, f"train@{item}", lifeline) for item in ("a-1", "b-1")]
        assert all(future.result(PATIENCE) for future in ran)
    graph = stage_graph(project)
    assert not stale_stages(project, graph, source_checks(project, graph)) & {"train@a-1", "train@b-1"}


def test_a_locked_repository_is_waited_for(project):
    forget(project)
    lock = zc.lockfile.LockFile(str(project / ".dvc/tmp/lock"))
    threading.Timer(4.5, lock.close).start()  # DVC alone gives up after 3 s
    assert run(project)


def test_a_path_that_another_dvc_process_works_on_is_waited_for(project):
    forget(project)
    holder = {"pid": os.getpid(), "cmd": "dvc repro"}
    rwlock = project / ".dvc/tmp/rwlock"
    rwlock.write_text(json.dumps({"read": {}, "write": {str(project / "results/a-1"): holder}}))
    shown = []
    with pytest.raises(StageFailed, match=f"it is busy: `dvc repro` locked the same files as pid {os.getpid()}, which"):
        run(project, patience=0, show=shown.append)
    assert len(shown) == 1 and "if that is none of DVC's, remove .dvc/tmp/rwlock" in shown[0]
    threading.Timer(2, rwlock.write_text, ["{}"]).start()
    assert run(project)


def test_a_path_that_a_killed_dvc_process_left_busy_is_freed_where_another_process_has_its_pid(project):
    forget(project)
    told = []
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        holder = {"pid": sleeper.pid, "cmd": "/bin/dvc repro train@a-1"}
        (project / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {str(project / "results/a-1"): holder}}))
        try:
            assert run(project, log=told.append, patience=0)
        finally:
            sleeper.kill()
    freed = "the lock of `/bin/dvc repro train@a-1`, which has ended, is removed: pid {} is now `sleep 600`"
    assert told.count(freed.format(sleeper.pid)) == 1


def test_closing_the_lifeline_stops_the_stage_and_all_it_started(project):
    forget(project)
    (project / "work.py").write_text(HANG)
    with ThreadPoolExecutor(1) as pool:
        with Lifeline() as lifeline:
            running = pool.submit(run_stage, project, "train@a-1", lifeline)
            wait_until((project / "pid").exists)
        with pytest.raises(StageFailed):
            running.result(PATIENCE)
    pid = int((project / "pid").read_text())
    wait_until(lambda: not alive(pid))  # killed already, but a process takes a moment to die


def test_a_stage_that_takes_longer_than_it_may_is_stopped_and_says_so(project):
    forget(project)
    (project / "work.py").write_text(HANG)
    with pytest.raises(StageFailed, match=r"train@a-1 failed: .*stopped after 4 seconds"):
        run(project, timeout=4)
    if (project / "pid").exists():
        wait_until(lambda: not alive(int((project / "pid").read_text())), 10)


def test_what_was_pushed_to_a_new_remote_is_restored_where_nothing_was_built(project):
    dvc(project, f"remote add storage {project.parent / 'storage'}")
    with Lifeline() as lifeline:
        transfer(project, "pull", "storage", lifeline)
        transfer(project, "push", "storage", lifeline)
        forget(project, "a-1", "b-1")
        transfer(project, "pull", "storage", lifeline)
        with pytest.raises(StageFailed, match="dvc pull with remote 'other' failed: .*other"):
            transfer(project, "pull", "other", lifeline)
    assert (project / "results/a-1").read_text() == "done"


def test_a_killed_parent_leaves_no_child(project):
    forget(project)
    (project / "work.py").write_text(HANG)
    code = (
        "from flows.orchestration.dvc_graph import *\n"
        "with Lifeline() as lifeline: run_stage('.', 'train@a-1', lifeline)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=project, env=env)
    wait_until((project / "pid").exists)
    pid = int((project / "pid").read_text())
    group = os.getpgid(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not alive(pid) and not alive(group), 10)
