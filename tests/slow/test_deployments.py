"""What infra/prefect/prefect.yaml deploys, on a real Prefect server with a worker: run, raced, cancelled, failed."""

import contextlib
import datetime
import json
import subprocess
import sys
import threading
import urllib.request
import uuid
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.postgres import create_database, postgres
from tests.processes import TOKEN, command_of, end_all, processes_with, wait_until
from tests.servers import prefect_server, prefect_worker
from tests.workspace import QUICK, ROOT, environment, make_workspace, run

pytestmark = pytest.mark.slow
FILE = str(ROOT / "infra/prefect/prefect.yaml")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
DEPLOYMENTS = ("nightly", "weekly-search", "nightly-cluster", "weekly-search-cluster")


class Place:
    """A committed project with a server, a worker and every deployment of the file."""

    def __init__(self, folder: Path, stack: ExitStack, database: str | None = None, files: dict[str, str] = {}):
        self.token = uuid.uuid4().hex
        stack.callback(end_all, self.token)
        self.project = make_workspace(folder / "project", dvc=True, shots=[2], **QUICK)
        (self.project / "dvc.lock").write_text("schema: '2.0'\n")
        for name, text in files.items():
            (self.project / name).write_text(text)
        for words in (["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "start"]):
            run(self.project, "git", *words)
        self.api = stack.enter_context(prefect_server(folder / "server", database))
        self.env = {**environment(), "PYTHONPATH": str(ROOT), "PWD": str(self.project), TOKEN: self.token,
                    "PREFECT_API_URL": self.api, "PREFECT_HOME": str(folder / "home")}  # fmt: skip
        self.prefect("work-pool", "create", "local", "--type", "process")
        self.prefect("work-pool", "create", "cluster", "--type", "kubernetes")
        self.deployed = self.prefect("--no-prompt", "deploy", "--all", "--prefect-file", FILE)
        own = {key: self.env[key] for key in ("PYTHONPATH", "PATH", TOKEN)}
        self.worker = stack.enter_context(prefect_worker(folder / "worker", self.api, "local", **own))
        self.log = folder / "worker" / "worker.log"

    def prefect(self, *words: str) -> str:
        return self.python("-m", "prefect", *words)

    def python(self, *words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=self.project, env=self.env, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, **body):
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{self.api}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def start(self, name: str, **parameters) -> str:
        deployment = self.ask(f"deployments/name/adapt/{name}")["id"]
        state = {"type": "SCHEDULED"}
        return self.ask(f"deployments/{deployment}/create_flow_run", state=state, parameters=parameters)["id"]

    def state(self, run_id: str) -> dict:
        return self.ask(f"flow_runs/{run_id}")["state"]

    def end_of(self, run_id: str) -> dict:
        wait_until(lambda: self.state(run_id)["type"] in ENDED, 150, lambda: self.log.read_text()[-3000:])
        return self.state(run_id)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with ExitStack() as stack:
        yield Place(tmp_path_factory.mktemp("sqlite"), stack)


def test_one_command_makes_every_deployment(place):
    for name in DEPLOYMENTS:
        schedule = place.ask(f"deployments/name/adapt/{name}")["schedules"][0]
        assert schedule["active"] == (not name.endswith("-cluster"))


def test_a_run_builds_what_is_committed_leaves_the_checkout_alone_and_its_champion_is_released(place):
    before = set(place.project.iterdir())
    state = place.end_of(place.start("nightly", seeds=[2]))
    assert state["type"] == "COMPLETED", (state, place.log.read_text()[-6000:])
    new = {path.name for path in set(place.project.iterdir()) - before}
    assert new <= {".mmrl", "mlflow.db", "mlartifacts", "releases"}  # what git ignores
    assert run(place.project, "git", "status", "--porcelain").stdout == ""
    assert len(run(place.project, "git", "worktree", "list").stdout.splitlines()) == 1
    assert run(place.project, sys.executable, "-c", VERSIONS).stdout.split() == ["2"]
    [artifact] = place.ask("artifacts/filter", artifacts={"key": {"any_": ["results"]}})
    assert "| digits |" in artifact["data"] and "champion: `models:/digits-base-to-novel version 1`" in artifact["data"]
    assert len(list(place.project.glob(".mmrl/logs/*/report.html"))) == 1
    # Its event starts the deployment `release`.
    deployment = place.ask("deployments/name/release/release")["id"]
    wanted = {"deployments": {"id": {"any_": [deployment]}}}
    wait_until(lambda: bool(place.ask("flow_runs/filter", **wanted)), 90, lambda: place.log.read_text()[-3000:])
    [one] = place.ask("flow_runs/filter", **wanted)
    assert place.end_of(one["id"])["type"] == "COMPLETED", place.log.read_text()[-6000:]
    assert (place.project / "releases/digits-base-to-novel/1/SHA256SUMS").exists()


VERSIONS = """
import mlflow
client = mlflow.MlflowClient("sqlite:///mlflow.db")
print(*(one.tags["seed"] for one in client.search_model_versions("name = 'digits-base-to-novel'")))
"""


BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
block = Webhook(name="tests", url=sys.argv[1], json_data={"subject": "{{subject}}", "body": "{{body}}"})
print(block.save("adapt-failures"))
"""
NO_BLOCK = "00000000-0000-0000-0000-000000000000"


@contextlib.contextmanager
def mailbox():
    """A webhook's URL and the list of what arrives there."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", received
        server.shutdown()


def test_a_failed_stage_sends_a_message_that_says_what_to_act_on(place, tmp_path):
    with mailbox() as (url, received):
        block = place.python("-c", BLOCK, url).split()[-1]
        automation = (ROOT / "infra/prefect/failures.yaml").read_text()
        (tmp_path / "failures.yaml").write_text(automation.replace(NO_BLOCK, block))
        place.prefect("automation", "create", "--from-file", str(tmp_path / "failures.yaml"))

        one = place.start("nightly", in_worktree=True, overrides=["datasets=[own]", "data.own.own.images=nowhere"])
        state = place.end_of(one)
        assert state["type"] == "FAILED"
        assert "stage fingerprint@own: " in state["message"] and "nowhere" in state["message"]
        wait_until(lambda: bool(received), 60, lambda: "the message of the automation")
    assert received[0]["subject"].startswith("adapt failed: ")
    assert state["message"] in received[0]["body"]


PIPELINE = """
stages:
  work:
    cmd: sh work.sh
    deps: [work.sh]
    params: [train.epochs]
    outs: [work.txt]
"""
# Epochs tell what a run does: 7 and 8 wait for each other, 5000 waits in a child of its own until it is killed.
WORK = """
epochs=$(sed -n 's/^  epochs: //p' params.yaml)
case $epochs in
  5000) (sleep 1234);;
  7|8) touch MEET/$epochs; while [ ! -e MEET/7 ] || [ ! -e MEET/8 ]; do sleep 0.1; done;;
esac
echo $epochs > work.txt
"""


@pytest.fixture(scope="module")
def on_postgresql(tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgresql")
    with ExitStack() as stack:
        uri = create_database(stack.enter_context(postgres()), "prefect")
        yield Place(folder, stack, uri, files={"dvc.yaml": PIPELINE, "work.sh": WORK.replace("MEET", str(folder))})


def test_on_postgresql_a_weekly_search_has_the_seed_of_its_week(on_postgresql):
    one = on_postgresql.start("weekly-search", datasets=[])
    state = on_postgresql.end_of(one)
    assert state["type"] == "COMPLETED", (state, on_postgresql.log.read_text()[-6000:])
    year, week, _ = datetime.datetime.now(datetime.UTC).isocalendar()
    params = yaml.safe_load(run(on_postgresql.project, "git", "show", "mmrl/adapted:params.yaml").stdout)
    assert abs(params["search"]["seed"] - (year * 100 + week)) <= 1  # a run may start on either side of midnight
    assert params["search"]["enabled"]


def test_two_runs_at_once_have_settings_and_outputs_of_their_own(on_postgresql):
    place, lock = on_postgresql, "mmrl/adapted{}:dvc.lock"
    runs = [place.start("nightly", datasets=[], overrides=[f"train.epochs={epochs}"]) for epochs in (7, 8)]
    assert [place.end_of(one)["type"] for one in runs] == ["COMPLETED"] * 2, place.log.read_text()[-6000:]
    found = [yaml.safe_load(run(place.project, "git", "show", lock.format(at)).stdout) for at in ("", "^2")]
    work = [one["stages"]["work"] for one in found]
    for one in work:
        md5, epochs = one["outs"][0]["md5"], one["params"]["params.yaml"]["train.epochs"]
        assert (place.project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).read_text() == f"{epochs}\n"
    assert sorted(one["params"]["params.yaml"]["train.epochs"] for one in work) == [7, 8]


def sleepers(place) -> list[int]:
    return [pid for pid in processes_with(place.token) if "sleep 1234" in command_of(pid)]


def test_a_cancelled_run_leaves_no_process_and_no_worktree(on_postgresql):
    place = on_postgresql
    one = place.start("nightly", datasets=[], overrides=["train.epochs=5000"])
    wait_until(lambda: bool(sleepers(place)), 90, lambda: place.log.read_text()[-3000:])
    place.prefect("flow-run", "cancel", one)
    assert place.end_of(one)["type"] == "CANCELLED"
    wait_until(lambda: not sleepers(place), 20, lambda: "the stage's processes to end")
    wait_until(lambda: not list(place.project.glob(".mmrl/worktrees/*/dvc.yaml")), 20, lambda: "its worktree to vanish")
