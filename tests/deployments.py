"""A project whose deployments a real Prefect server and worker run."""

import datetime
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack
from pathlib import Path

from tests.processes import PATIENCE, TOKEN, end_all, wait_until
from tests.servers import prefect_server, prefect_worker
from tests.workspace import ROOT, environment, make_workspace, run

FILE = str(ROOT / "infra/prefect/prefect.yaml")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Place:
    """A committed project with a server, a worker and every deployment of the file."""

    def __init__(
        self, folder: Path, stack: ExitStack, database: str | None = None, files: dict[str, str] = {}, **changes
    ):
        self.token = uuid.uuid4().hex
        stack.callback(end_all, self.token)
        self.project = make_workspace(folder / "project", dvc=True, **changes)
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

    def ask(self, path: str, method: str | None = None, **body):
        data = json.dumps(body).encode() if body else None
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.api}/{path}", data, kind, method=method)
        for patience in (5, 20, 0):  # as Prefect's own client: a busy server on sqlite says 503
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or not patience:
                    raise
                time.sleep(patience)

    def deployment(self, name: str) -> str:
        return self.ask(f"deployments/name/{name}")["id"]

    def start(self, name: str, **parameters) -> str:
        deployment, state = self.deployment(f"adapt/{name}"), {"type": "SCHEDULED"}
        return self.ask(f"deployments/{deployment}/create_flow_run", state=state, parameters=parameters)["id"]

    def schedule(self, name: str, seconds: float) -> None:
        """In place of its schedules: once a day, for the first time in so many seconds."""
        first = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
        daily = {"interval": 86400, "anchor_date": first.isoformat()}
        self.ask(f"deployments/{self.deployment(name)}", "PATCH", schedules=[{"active": True, "schedule": daily}])

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

        wait_until(seen, PATIENCE, lambda: f"a run of {name}: {self.log.read_text()[-3000:]}")
        return new[0]

    def state(self, run_id: str) -> dict:
        return self.ask(f"flow_runs/{run_id}")["state"]

    def end_of(self, run_id: str) -> dict:
        wait_until(lambda: self.state(run_id)["type"] in ENDED, 4 * PATIENCE, lambda: self.log.read_text()[-3000:])
        return self.state(run_id)
