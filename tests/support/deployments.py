"""A project whose deployments a real Prefect server and worker run."""

import datetime
import json
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.support.postgres import cursor
from tests.support.processes import PATIENCE, TOKEN, end_all, wait_until
from tests.support.servers import prefect_server, prefect_worker
from tests.support.workspace import ROOT, environment, make_workspace, run

FILE = str(ROOT / "infra/prefect/prefect.yaml")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Place:
    """A committed project with a server, a worker and every deployment of the file."""

    def __init__(self, folder: Path, stack: ExitStack, database: str, files: dict[str, str] = {}, **changes):
        self.token = uuid.uuid4().hex
        stack.callback(end_all, self.token)
        self.project = make_workspace(folder / "project", dvc=True, **changes)
        (self.project / "dvc.lock").write_text("schema: '2.0'\n")
        for name, text in files.items():
            (self.project / name).write_text(text)
        for words in (["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "start"]):
            run(self.project, "git", *words)
        self.api = stack.enter_context(prefect_server(folder / "server", database))
        self.database = stack.enter_context(cursor(database))
        self.env = {**environment(), "PYTHONPATH": str(ROOT), "PWD": str(self.project), TOKEN: self.token,
                    "PREFECT_API_URL": self.api, "PREFECT_HOME": str(folder / "home")}  # fmt: skip
        kinds = self.ask("collections/views/aggregate-worker-metadata")
        self._create_pool("local", kinds["prefect"]["process"])
        self._create_pool("cluster", kinds["prefect-kubernetes"]["kubernetes"])
        self.deployed = self.prefect("--no-prompt", "deploy", "--all", "--prefect-file", FILE)
        own = {key: self.env[key] for key in ("PYTHONPATH", "PATH", TOKEN)}
        self.worker = stack.enter_context(prefect_worker(folder / "worker", self.api, "local", **own))
        self.log = folder / "worker" / "worker.log"

    def _create_pool(self, name: str, kind: dict) -> None:
        """As `prefect work-pool create` does."""
        self.ask("work_pools/", name=name, type=kind["type"], base_job_template=kind["default_base_job_configuration"])

    def prefect(self, *words: str) -> str:
        return self.python("-m", "prefect", *words)

    def python(self, *words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=self.project, env=self.env, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, method: str | None = None, **body):
        data = json.dumps(body).encode() if body else None
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.api}/{path}", data, kind, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def deployment(self, name: str) -> str:
        return self.ask(f"deployments/name/{name}")["id"]

    def start(self, name: str, **parameters) -> str:
        deployment, state = self.deployment(f"adapt/{name}"), {"type": "SCHEDULED"}
        return self.ask(f"deployments/{deployment}/create_flow_run", state=state, parameters=parameters)["id"]

    def schedule(self, name: str) -> None:
        """In place of its schedules: once a day, for the first time as soon as the scheduler has seen it."""
        deployment = self.deployment(name)
        if not any(self._scheduled(deployment, seconds) for seconds in (2, 10, 50)):
            raise AssertionError(f"{name} was never scheduled in time")

    def _scheduled(self, deployment: str, seconds: int) -> bool:
        """Whether it starts in so many seconds: a busy server may see that too late, and then it starts tomorrow."""
        day = datetime.timedelta(days=1)
        first = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=seconds)
        daily = {"interval": day.total_seconds(), "anchor_date": first.isoformat()}
        self.ask(f"deployments/{deployment}", "PATCH", schedules=[{"active": True, "schedule": daily}])
        self.wait_until(lambda: self._starts(deployment, first, first + day), PATIENCE)
        return self._starts(deployment, first, first)

    def _starts(self, deployment: str, after: datetime.datetime, before: datetime.datetime) -> bool:
        """Whether the scheduler has made a run of it for that time."""
        between = {"after_": after.isoformat(), "before_": before.isoformat()}
        wanted = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"expected_start_time": between}}
        return bool(self.ask("flow_runs/filter", **wanted))

    def runs(self, name: str) -> list[str]:
        """Ids of the runs of a deployment that have started."""
        wanted = {"deployments": {"id": {"any_": [self.deployment(name)]}},
                  "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}}  # fmt: skip
        return [one["id"] for one in self.ask("flow_runs/filter", **wanted)]

    def next_run(self, name: str, known: list[str]) -> str:
        """The id of a run that is not known yet, once there is one."""
        new: list[str] = []

        def seen() -> bool:
            new[:] = [one for one in self.runs(name) if one not in known]
            return bool(new)

        self.wait_until(seen, PATIENCE)
        return new[0]

    def state(self, run_id: str) -> dict:
        return self.ask(f"flow_runs/{run_id}")["state"]

    def end_of(self, run_id: str) -> dict:
        self.wait_until(lambda: self.state(run_id)["type"] in ENDED, 4 * PATIENCE)
        return self.state(run_id)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Ask whenever a run has come or changed its state: a server that is asked all the time is slow."""
        before: list[tuple] | None = None

        def told() -> bool:
            nonlocal before
            self.database.execute("SELECT id, state_id FROM flow_run ORDER BY id")
            runs = self.database.fetchall()
            changed, before = runs != before, runs
            return changed and condition()

        wait_until(told, seconds, lambda: self.log.read_text()[-3000:])
