"""The whole story, with real servers on loopback: data changes, a scheduled run makes a challenger, a gate decides, the
winner is released, serving follows it under traffic, a worse one is refused, and a bad champion is taken back.

PostgreSQL keeps what MLflow and Prefect know; Prefect's worker runs the flows; Ray Serve answers.
"""

import contextlib
import json
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet

from flows.orchestration import webhook
from flows.registry.releases import RELEASED
from flows.tracking.store import absolute, connect
from mmrl_core.data.embedded import digits
from tests.support import serving
from tests.support.deployments import Place
from tests.support.postgres import create_database, free_port
from tests.support.processes import PATIENCE, wait_until
from tests.support.servers import mlflow_server, running
from tests.support.serving import in_base64
from tests.support.workspace import BIN

pytestmark = [pytest.mark.slow, pytest.mark.endurance]
NAME = "photos-base-to-novel"
SETTINGS = {
    "datasets": ["photos"],
    "data": {"own": {"photos": {"images": "photos", "template": "a photo of the digit {}."}}},
    "methods": ["mmrl"], "baselines": [], "seeds": [1], "shots": [8], "train": {"epochs": 4},
    "adapter": {"probe": "off"}, "search": {"enabled": False},
}  # fmt: skip
ON_LOOPBACK = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
               "MLFLOW_WEBHOOK_CACHE_TTL": "1",  # 60 s: until then MLflow does not know of a new webhook
               "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode()}  # fmt: skip
SECRET = "known to MLflow and to the listener"


@pytest.mark.timeout(1800)
def test_the_whole_story(tmp_path, postgres_port, mlflow_database):
    with ExitStack() as stack:
        story = Story(tmp_path, stack, mlflow_database(), create_database(postgres_port))
        story.swap("eight", "one")  # a mistake that nobody has seen yet
        story.a_scheduled_run_makes_the_first_champion_and_its_release()
        story.prefect_shows_the_results_and_the_way_to_mlflow()
        with story.traffic() as answers:
            story.corrected_data_makes_a_challenger_that_wins_and_goes_live()
            story.a_worse_challenger_is_refused()
            assert story.aliases() == {"champion": 2, "previous": 1, "challenger": 3, RELEASED: 2}
            story.the_champion_before_is_live_again_after_a_rollback()
            story.mlflow_itself_tells_of_a_champion()
        story.told([(1, "first"), (1, RELEASED), (2, "accepted"), (2, RELEASED), (3, "refused"),
                    (1, "rolled back"), (1, RELEASED), (2, "forced"), (2, RELEASED)])  # fmt: skip
        story.answered_by(answers, [1, 2, 1, 2])


class Story:
    def __init__(self, folder: Path, stack: ExitStack, store: str, prefect: str):
        self.mlflow = stack.enter_context(mlflow_server(folder / "mlflow", absolute(store), **ON_LOOPBACK))
        self.place = Place(folder, stack, prefect, **SETTINGS, tracking={"uri": self.mlflow})
        self.project, self.stack = self.place.project, stack
        write_photos(self.project / "photos")

    def a_scheduled_run_makes_the_first_champion_and_its_release(self):
        """On schedule, which is now instead of at two in the morning."""
        before = set(self.project.iterdir())
        with self.ending("adapt/nightly", "release/release"):
            self.place.schedule("adapt/nightly")
        assert {path.name for path in set(self.project.iterdir()) - before} == {".mmrl", "releases"}
        assert self.aliases() == {"champion": 1, RELEASED: 1}

    def prefect_shows_the_results_and_the_way_to_mlflow(self):
        [results] = self.place.ask("artifacts/filter", artifacts={"key": {"any_": ["results"]}})
        assert "| photos |" in results["data"]
        champion = rf"- champion of photos: MMRL, 8 shots, seed 1: base .*; models:/{NAME} version 1"
        assert re.search(champion, results["data"])
        [link] = re.findall(r"\[training run\]\((.*)\)", results["data"])
        assert link.startswith(self.mlflow) and httpx.get(link).status_code == 200
        assert len(list(self.project.glob(".mmrl/logs/*/report.html"))) == 1

    def corrected_data_makes_a_challenger_that_wins_and_goes_live(self):
        self.swap("eight", "one")
        with self.ending("adapt/nightly", "release/release"):
            self.place.start("nightly")
        assert self.aliases() == {"champion": 2, "previous": 1, RELEASED: 2}
        self.becomes_live(2)

    def a_worse_challenger_is_refused(self):
        with self.ending("adapt/nightly"):
            self.place.start("nightly", overrides=["train.lr=0.3"])

    def the_champion_before_is_live_again_after_a_rollback(self):
        with self.ending("release/release"):
            self.mmrl("rollback", "wrong on night shots")
        self.becomes_live(1)

    def mlflow_itself_tells_of_a_champion(self):
        """By a signed webhook, where no Prefect server is told."""
        with self.listener() as address:
            events = ["model_version_alias.created"]
            connect(self.mlflow).create_webhook(name="release", url=address, events=events, secret=SECRET)
            self.mmrl("promote", "--version", "2", "--force", "it was the lamps", PREFECT_API_URL="")
            self.becomes_live(2)

    def swap(self, one: str, other: str) -> None:
        photos = self.project / "photos"
        for source, target in ((one, "aside"), (other, one), ("aside", other)):
            (photos / source).rename(photos / target)

    @contextlib.contextmanager
    def ending(self, *names: str) -> Iterator[None]:
        """What the block starts ends well: a run of each of these deployments."""
        known = {name: self.place.runs(name) for name in names}
        yield
        for name in names:
            run = self.place.next_run(name, known[name])
            assert self.place.end_of(run)["type"] == "COMPLETED", self.place.log.read_text()[-6000:]

    def mmrl(self, *words: str, **env: str) -> str:
        command, env = [str(BIN / "mmrl"), *words], {**self.place.env, **env}
        done = subprocess.run(command, cwd=self.project, env=env, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def aliases(self) -> dict[str, int]:
        asked = {"name": NAME}
        url = f"{self.mlflow}/api/2.0/mlflow/registered-models/get"
        found = httpx.get(url, params=asked).json()["registered_model"]["aliases"]
        return {one["alias"]: int(one["version"]) for one in found}

    def told(self, verdicts: list[tuple[int, str]]) -> None:
        [entries] = json.loads(self.mmrl("history", "--json")).values()
        assert [(one["version"], one["verdict"]) for one in entries] == verdicts

    def answered_by(self, answers: list[tuple[int, int]], versions: list[int]) -> None:
        """None was lost, and each version took the place of the one before."""
        assert Counter(status for status, _ in answers) == {200: len(answers)}
        live = [version for _, version in answers]
        assert [one for one, before in zip(live, [None, *live], strict=False) if one != before] == versions

    @contextlib.contextmanager
    def traffic(self) -> Iterator[list[tuple[int, int]]]:
        """Status and version of every answer that a client got who never stopped asking."""
        options = ("--model", f"models:/{NAME}@{RELEASED}", "--set", "serving.poll_seconds=0.5")
        self.server = self.stack.enter_context(serving.serve(self.project, *options))
        image = {"image": in_base64(next((self.project / "photos" / "zero").iterdir()).read_bytes())}
        done, self.answers = threading.Event(), []

        def ask() -> None:
            with httpx.Client(base_url=self.server.address, timeout=60) as client:
                while not done.wait(0.5):
                    answer = client.post("/predict", json=image)
                    self.answers.append((answer.status_code, answer.json()["model"]["version"]))

        client = threading.Thread(target=ask)
        client.start()
        try:
            yield self.answers
        finally:
            done.set()
            client.join()

    def becomes_live(self, version: int) -> None:
        seen = len(self.answers)
        wait_until(
            lambda: version in [live for _, live in self.answers[seen:]], 90, lambda: self.server.get("/readyz").text
        )

    @contextlib.contextmanager
    def listener(self) -> Iterator[str]:
        address, log = f"127.0.0.1:{free_port()}", self.project.parent / "listener.log"
        command = [str(BIN / "mmrl"), "flow", "release", "--listen", address]
        env = {**self.place.env, webhook.SECRET: SECRET}
        with running(command, log, lambda: "listening on" in log.read_text(), cwd=self.project, env=env):
            wait_until(self.has_looked, PATIENCE, log.read_text)
            yield f"http://{address}"

    def has_looked(self) -> bool:
        """Whether the listener's own first look is over: what is released then, it has been told of."""
        runs = self.place.ask("flow_runs/filter", flows={"name": {"any_": ["release"]}})
        return any(run["deployment_id"] is None and run["state_type"] == "COMPLETED" for run in runs)


def write_photos(folder: Path) -> None:
    source = digits.open_source()
    for item in (*source.train, *source.val, *source.test):
        file = folder / item.class_name / Path(item.path).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read(item))
