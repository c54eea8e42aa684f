"""What infra/prefect/prefect.yaml deploys, on a real Prefect server with a worker: run, raced, cancelled, failed."""

import contextlib
import datetime
import json
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from tests.support.deployments import Place
from tests.support.postgres import create_database
from tests.support.processes import PATIENCE, command_of, processes_with, wait_until
from tests.support.workspace import QUICK, ROOT, run

pytestmark = pytest.mark.slow
ACTIVE = {"adapt/nightly": True, "adapt/weekly-search": True, "drift/hourly": True,
          "adapt/nightly-cluster": False, "adapt/weekly-search-cluster": False}  # fmt: skip

PIPELINE = """
stages:
  work:
    cmd: sh work.sh
    deps: [work.sh]
    params: [train.epochs]
    outs: [work.txt]
"""
# Epochs tell what a run does: 6 fails, 7 and 8 wait for each other, 5000 waits in a child of its own until killed.
WORK = """
epochs=$(sed -n 's/^  epochs: //p' params.yaml)
case $epochs in
  5000) (sleep 1234);;
  6) echo "data/photos is missing; put it there" >&2; exit 2;;
  7|8) touch MEET/$epochs; while [ ! -e MEET/7 ] || [ ! -e MEET/8 ]; do sleep 0.02; done;;
esac
echo $epochs > work.txt
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, postgres_port):
    folder = tmp_path_factory.mktemp("place")
    files = {"dvc.yaml": PIPELINE, "work.sh": WORK.replace("MEET", str(folder))}
    with ExitStack() as stack:
        yield Place(folder, stack, create_database(postgres_port), files, **QUICK)


def test_one_command_makes_every_deployment(place):
    schedules = {name: place.ask(f"deployments/name/{name}")["schedules"] for name in ACTIVE}
    assert {name: one["active"] for name, [one] in schedules.items()} == ACTIVE


def test_a_weekly_search_has_the_seed_of_its_week_and_leaves_the_checkout_alone(place):
    before = set(place.project.iterdir())
    state = place.end_of(place.start("weekly-search", datasets=[]))
    assert state["type"] == "COMPLETED", (state, place.log.read_text()[-6000:])
    new = {path.name for path in set(place.project.iterdir()) - before}
    assert new <= {".mmrl", "mlflow.db", "mlartifacts"}  # what git ignores
    assert run(place.project, "git", "status", "--porcelain").stdout == ""
    assert len(run(place.project, "git", "worktree", "list").stdout.splitlines()) == 1
    year, week, _ = datetime.datetime.now(datetime.UTC).isocalendar()
    params = yaml.safe_load(run(place.project, "git", "show", "mmrl/adapted:params.yaml").stdout)
    assert abs(params["search"]["seed"] - (year * 100 + week)) <= 1  # a run may start on either side of midnight
    assert params["search"]["enabled"]


def test_predictions_that_drifted_start_a_run(place):
    known, folder = place.runs("adapt/nightly"), place.project / ".mmrl/predictions"
    folder.mkdir(parents=True)
    row = {"time": datetime.datetime.now(datetime.UTC).isoformat(), "name": "digits-base-to-novel", "version": 1}
    strange = json.dumps({**row, "strange": True, "expected": 0.05})
    (folder / "replica.jsonl").write_text(f"{strange}\n" * 20)
    place.schedule("drift/hourly")
    assert place.end_of(place.next_run("drift/hourly", []))["type"] == "COMPLETED", place.log.read_text()[-3000:]
    place.end_of(place.next_run("adapt/nightly", known))


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

        state = place.end_of(place.start("nightly", overrides=["train.epochs=6"]))
        assert state["type"] == "FAILED"
        assert "stage work: data/photos is missing; put it there" in state["message"]
        wait_until(lambda: bool(received), PATIENCE, lambda: "the message of the automation")
    assert received[0]["subject"].startswith("adapt failed: ")
    assert state["message"] in received[0]["body"]


def test_two_runs_at_once_have_settings_and_outputs_of_their_own(place):
    lock = "mmrl/adapted{}:dvc.lock"
    runs = [place.start(name, datasets=[], overrides=[f"train.epochs={epochs}"])
            for name, epochs in (("nightly", 7), ("weekly-search", 8))]  # fmt: skip
    assert [place.end_of(one)["type"] for one in runs] == ["COMPLETED"] * 2, place.log.read_text()[-6000:]
    found = [yaml.safe_load(run(place.project, "git", "show", lock.format(at)).stdout) for at in ("", "^2")]
    work = [one["stages"]["work"] for one in found]
    for one in work:
        md5, epochs = one["outs"][0]["md5"], one["params"]["params.yaml"]["train.epochs"]
        assert (place.project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).read_text() == f"{epochs}\n"
    assert sorted(one["params"]["params.yaml"]["train.epochs"] for one in work) == [7, 8]


def late(place, days: int) -> str:
    """A nightly run that was due so many days ago, as a schedule makes it."""
    due = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
    path = f"deployments/{place.deployment('adapt/nightly')}/create_flow_run"
    return place.ask(path, state=state, tags=["auto-scheduled"], parameters={"datasets": []})["id"]


def test_nights_that_were_missed_while_no_worker_was_there_are_one_run(place):
    place.ask("work_pools/local", "PATCH", is_paused=True)
    runs = [late(place, days) for days in (3, 2, 1)]
    place.ask("work_pools/local", "PATCH", is_paused=False)
    ends = [place.end_of(one) for one in runs]
    assert sorted(end["type"] for end in ends) == ["CANCELLED", "CANCELLED", "COMPLETED"], place.log.read_text()[-6000:]
    after = place.end_of(late(place, days=1))  # which no worker saw before
    assert (after["type"], after["name"]) == ("COMPLETED", "Skipped")
    assert after["message"].endswith("began after this run was due, and did its work")


def sleepers(place) -> list[int]:
    return [pid for pid in processes_with(place.token) if "sleep 1234" in command_of(pid)]


def test_a_cancelled_run_leaves_no_process_and_no_worktree(place):
    one = place.start("nightly", datasets=[], overrides=["train.epochs=5000"])
    wait_until(lambda: bool(sleepers(place)), PATIENCE, lambda: place.log.read_text()[-3000:])
    place.ask(f"flow_runs/{one}/set_state", state={"type": "CANCELLING"})
    assert place.end_of(one)["type"] == "CANCELLED"
    wait_until(lambda: not sleepers(place), 20, lambda: "the stage's processes to end")
    wait_until(lambda: not list(place.project.glob(".mmrl/worktrees/*/dvc.yaml")), 20, lambda: "its worktree to vanish")
