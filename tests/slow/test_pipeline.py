import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from flows.orchestration.dvc_graph import source_checks, stage_graph, stale_stages
from tests.support.processes import PATIENCE
from tests.support.servers import prefect_server

pytestmark = pytest.mark.slow

PIPELINE = """
stages:
  fingerprint:
    matrix: {dataset: "${datasets}"}
    cmd: cp raw/${item.dataset}.txt ${item.dataset}.source
    always_changed: true
    outs: [{"${item.dataset}.source": {cache: false}}]
  train:
    matrix: {dataset: "${datasets}"}
    cmd: python work.py ${item.dataset}
    deps: ["${item.dataset}.source"]
    outs: ["results/${item.dataset}"]
  summarize:
    cmd: cat results/* > summary.txt
    deps: [results]
    outs: [summary.txt]
"""
TRAIN = """
import os, pathlib, sys, time
pathlib.Path("results").mkdir(exist_ok=True)
pathlib.Path("started", sys.argv[1]).write_text(str(os.getpid()))
while len(os.listdir("started")) < 2:  # each waits for the other: they must run at the same time
    time.sleep(0.02)
pathlib.Path("results", sys.argv[1]).write_text(pathlib.Path(f"{sys.argv[1]}.source").read_text())
print(os.environ["OMP_NUM_THREADS"], "threads")
"""
FAIL = """
import sys
print("tried", file=open("attempts", "a"))
if sys.argv[1] == "a":
    sys.exit("data/raw/a/images is empty; put photographs there")
"""
HANG = "\nimport time\ntime.sleep(600)\n"
UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING")
RUN = "from flows.orchestration.adapt import run_adapt; print(run_adapt(datasets=[]).summary)"
CHANGED = RUN.replace("datasets=[]", "datasets=[], overrides=['train.epochs=3']")
SETTINGS = "datasets: [a, b]\nmethods: [mmrl]\nshots: [4]\nseeds: [1]\n"


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory):
    """One for all tests: making the database costs each new one several seconds."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The API of a running server, for the flows that are not about a server of their own."""
    with prefect_server(tmp_path_factory.mktemp("server")) as api:
        yield api


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for name in ("raw", "started", ".mmrl"):
        (folder / name).mkdir()
    for dataset in "ab":
        (folder / f"raw/{dataset}.txt").write_text(dataset)
    (folder / "dvc.yaml").write_text(PIPELINE.replace("python", sys.executable))
    (folder / "params.yaml").write_text(SETTINGS)
    (folder / "work.py").write_text(TRAIN)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for command in ("init -q", "config core.analytics false"):
        subprocess.run([sys.executable, "-m", "dvc", *command.split()], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(tmp_path, repository, prefect_home):
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    (tmp_path / ".mmrl/prefect").symlink_to(prefect_home)
    return tmp_path


def start(project, *code_or_module, **env):
    """A python process in the project; its group is its own, its settings are those of a fresh shell."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "OMP"))}
    own |= {"PYTHONPATH": str(Path(__file__).parents[2]), "PREFECT_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS": "2", **env}
    log = (project / f"{len(list(project.glob('*.out')))}.out").open("w+")
    command = [sys.executable, *code_or_module]
    hears_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test run in the background does not
    process = subprocess.Popen(
        command, cwd=project, env=own, stdout=log, stderr=subprocess.STDOUT, preexec_fn=hears_ctrl_c
    )
    return process, Path(log.name)


def flow(project, code=RUN, **env):
    process, log = start(project, "-c", code, **env)
    assert process.wait(timeout=PATIENCE) in (0, 1)
    return process.returncode, log.read_text()


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def processes_in(project):
    """Every process whose working directory is the project."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")) == project:
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def test_the_flow_runs_what_is_stale_and_the_second_time_finds_nothing_to_do(project):
    code, output = flow(project)
    assert code == 0, output
    done = re.findall(r"^(\S+)  [\d.]+ s$", output, re.M)
    assert sorted(done) == ["fingerprint@a", "fingerprint@b", "summarize", "train@a", "train@b"]
    assert done[-1] == "summarize"
    assert (project / "summary.txt").read_text() == "ab"
    assert f"{max(1, (os.cpu_count() or 1) // 2)} threads" in (project / ".mmrl/logs/train@a.log").read_text()

    code, output = flow(project)
    assert (code, output.splitlines()[-1]) == (0, "nothing to do")
    assert not processes_in(project)


def test_a_failed_stage_fails_the_flow_and_leaves_the_other_results_and_the_settings(project, server):
    (project / "work.py").write_text(FAIL + TRAIN.replace("< 2", "< 1"))
    code, output = flow(project, CHANGED, PREFECT_API_URL=server, PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS="0")
    assert code == 1
    assert (project / "attempts").read_text() == 4 * "tried\n"  # three of a, one of b
    assert "stage train@a failed (exit 1): data/raw/a/images is empty; put photographs there" in output.splitlines()[-1]
    assert (project / "results/b").exists()
    assert not re.search("^summarize", output, re.M)
    graph = stage_graph(project)
    assert stale_stages(project, graph, source_checks(project, graph)) == {"train@a", "summarize"}
    assert (project / "params.yaml").read_text() == SETTINGS


def test_settings_that_are_changed_under_a_flow_reach_no_stage_of_it(project, server):
    changed = SETTINGS.replace("[4]", "[8]")
    (project / "work.py").write_text(TRAIN + f"pathlib.Path('params.yaml').write_text({changed!r})\n")
    code, output = flow(project, PREFECT_API_URL=server)
    assert code == 1
    assert "params.yaml was changed while the flow was running; start it again" in output.splitlines()[-1]
    assert not (project / "summary.txt").exists()
    assert (project / "params.yaml").read_text() == changed


def test_a_killed_flow_leaves_no_process_behind(project):
    (project / "work.py").write_text(TRAIN + HANG)
    process, _ = start(project, "-c", RUN)
    wait_until(lambda: len(list((project / "started").iterdir())) == 2)
    assert len(processes_in(project)) > 5  # the flow, its server, twice DVC and the command
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not processes_in(project), 10)


@pytest.mark.parametrize("ends_it", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_flow_stops_its_stages_and_puts_the_settings_back(project, ends_it):
    (project / "work.py").write_text(TRAIN + HANG)
    process, _ = start(project, "-c", CHANGED)
    wait_until(lambda: len(list((project / "started").iterdir())) == 2)
    assert "epochs: 3" in (project / "params.yaml").read_text()
    process.send_signal(ends_it)
    assert process.wait(timeout=30) != 0
    wait_until(lambda: not processes_in(project), 10)
    assert (project / "params.yaml").read_text() == SETTINGS


def api(url, path, **body):
    request = urllib.request.Request(
        f"{url}/{path}", json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def answer_or_none(url, path, **body):
    try:
        return api(url, path, **body)
    except OSError:  # it is not there yet, or its database is busy
        return None


def final_state(url, run):
    """The state in which a run ends; None before."""
    state = (answer_or_none(url, f"flow_runs/{run}") or {"state_type": "PENDING"})["state_type"]
    return None if state in UNFINISHED else state


def test_a_served_flow_has_its_schedule_and_runs_when_it_is_triggered(project, server):
    code = "from flows.orchestration.adapt import serve_adapt; serve_adapt('0 2 * * *', datasets=[])"
    process, log = start(project, "-c", code, PREFECT_API_URL=server, PREFECT_RUNNER_POLL_FREQUENCY="1")
    deployment = wait_until(lambda: answer_or_none(server, "deployments/name/adapt/nightly"))
    assert [item["schedule"]["cron"] for item in deployment["schedules"]] == ["0 2 * * *"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"

    asked = {"state": {"type": "SCHEDULED"}, "idempotency_key": "once"}
    run = wait_until(lambda: answer_or_none(server, f"deployments/{deployment['id']}/create_flow_run", **asked))
    assert wait_until(lambda: final_state(server, run["id"])) == "COMPLETED", log.read_text()
    assert (project / "summary.txt").read_text() == "ab"

    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)


SCHEDULES = """
from prefect.settings import PREFECT_API_URL, temporary_settings
from flows.orchestration.adapt import serve_adapt
from mmrl_core.errors import UserError
for cron, url in (("0 2 * * *", None), ("0 2 * * *", "http://127.0.0.1:9/api"), ("at night", None)):
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            serve_adapt(cron)
    except UserError as error:
        print(error)
"""


def test_a_schedule_that_cannot_be_is_the_users_mistake(project):
    process, log = start(project, "-c", SCHEDULES)
    assert process.wait(timeout=PATIENCE) == 0, log.read_text()
    lines = log.read_text().splitlines()
    assert len(lines) == 3
    for line, message in zip(lines, ("prefect server start", "does not answer", "five fields"), strict=True):
        assert message in line
