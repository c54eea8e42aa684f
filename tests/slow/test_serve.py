"""`mmrl serve` as a process on loopback, over a real registry: it answers, follows the alias under load, and ends."""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from flows.tracking import store
from tests.support import serving
from tests.support.processes import PATIENCE, processes_with, wait_until
from tests.support.serving import NAME, in_base64, picture
from tests.support.workspace import write_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A working directory with two registered versions, the first of them the champion."""
    folder = tmp_path_factory.mktemp("project")
    write_params(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        assert [serving.register(seed) for seed in (1, 2)] == [1, 2]
        serving.promote(1)
        yield folder


@pytest.fixture(scope="module")
def server(project):
    with serving.serve(project, "--set", "serving.poll_seconds=0.2", "--set", "serving.log_share=1") as server:
        yield server


def becomes(server: serving.Server, version: int) -> None:
    serving.promote(version)
    wait_until(lambda: server.version() == version, 60, lambda: f"version {version}: {server.get('/readyz').text}")


def test_questions_and_mistakes_are_answered_over_http(server):
    assert server.get("/healthz").json() == {"alive": True}
    assert server.get("/readyz").status_code == 200
    predictor = serving.predictor(1)
    for names in (None, ["cat", "dog"]):
        [expected] = predictor.predict([picture(3)], names)
        by_json = server.predict(picture(3), class_names=names).json()
        form = {"class_names": names} if names else {}
        by_form = httpx.post(f"{server.address}/predict", files={"image": picture(3)}, data=form).json()
        for answer in (by_json, by_form):
            assert answer["label"] == expected.label
            assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
            assert answer["model"]["adapter_sha256"] == predictor.card["sha256"]
    [log] = Path(".mmrl/predictions").iterdir()
    assert len(log.read_text().splitlines()) == 4
    assert server.predict(b"no image").status_code == 422
    assert server.predict(bytes(11_000_000)).status_code == 413
    assert "<html" in server.get("/").text and server.get("/openapi.json").json()["paths"]["/predict"]


def test_while_the_alias_moves_under_load_no_request_is_lost_and_each_has_the_answer_of_the_version_it_names(server):
    images = [picture(seed) for seed in range(8)]
    expected = {version: serving.predictor(version).predict(images) for version in (1, 2)}
    done, found = threading.Event(), []

    def ask(start: int) -> None:
        with httpx.Client(base_url=server.address, timeout=60) as client:
            number = start
            while not done.is_set():
                number = (number + 1) % len(images)
                answer = client.post("/predict", json={"image": in_base64(images[number])})
                found.append((number, answer.status_code, answer.json()))

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(ask, start) for start in range(6)]
        try:
            for version in (2, 1, 2, 1):
                before = len(found)
                becomes(server, version)
                wait_until(lambda before=before: len(found) > before + 20, 60, lambda: "answers")
        finally:
            done.set()
        for client in clients:
            client.result()
    assert Counter(status for _, status, _ in found) == {200: len(found)}
    assert {answer["model"]["version"] for _, _, answer in found} == {1, 2}
    for number, _, answer in found:
        named = expected[answer["model"]["version"]][number]
        assert answer["probabilities"] == pytest.approx(named.probabilities, abs=1e-4)


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(server):
    becomes(server, 1)
    client = store.connect(store.absolute("sqlite:///mlflow.db"))
    source = client.get_model_version_download_uri(NAME, "2").removeprefix("file://")
    [tensors] = Path(source).rglob("adapter.safetensors")
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1])
    try:
        serving.promote(2)
        wait_until(lambda: "problem" in server.get("/readyz").json(), 60, lambda: server.get("/readyz").text)
        ready = server.get("/readyz")
        assert (ready.status_code, ready.json()["model"]["version"]) == (200, 1)
        assert "version 2 of" in ready.json()["problem"]
        assert server.predict(picture(0)).json()["model"]["version"] == 1
        assert "mmrl_model_problem_replicas 1.0" in server.get("/metrics").text
    finally:
        tensors.write_bytes(whole)
        serving.promote(1)
    wait_until(lambda: "problem" not in server.get("/readyz").json(), 60, lambda: server.get("/readyz").text)


def test_sigterm_lets_what_is_in_flight_end_and_leaves_no_process(server):
    many = [f"class number {number}" for number in range(1000)]  # takes seconds: all of them are new
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.predict, picture(0), class_names=many)
        wait_until(lambda: in_flight(server) > 1, 30, lambda: server.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        assert slow.result().status_code == 200
    assert server.process.wait(60) == 0
    wait_until(lambda: not processes_with(server.token), 20, lambda: str(processes_with(server.token)))
    with pytest.raises(httpx.ConnectError):
        server.get("/healthz")


def in_flight(server: serving.Server) -> float:
    """Requests that the replica is answering, this one among them."""
    [line] = [line for line in server.get("/metrics").text.splitlines() if line.startswith("mmrl_requests_in_flight ")]
    return float(line.split()[1])


def test_a_second_replica_comes_when_questions_wait_and_with_one_killed_under_load_no_question_is_lost(project):
    options = ("replicas={min: 1, max: 2}", "cpus_per_replica=0.5", "batch_size=1")
    settings = [part for one in options for part in ("--set", f"serving.{one}")]
    with serving.serve(project, *settings, environment={"MMRL_API_KEY": "sesame"}) as server:
        assert server.predict(picture(0)).status_code == 401
        assert len(replicas_of(server)) == 1
        with httpx.Client(base_url=server.address, headers={"X-API-Key": "sesame"}, timeout=60) as client:
            check_answers(client)

            def told() -> str:
                return client.get("/metrics").text

            statuses = asked_until(lambda: 'version="1"} 2.0' in told(), client)
            assert set(statuses) == {200}
            replicas = replicas_of(server)
            assert len(replicas) == 2
            answered = f'mmrl_requests_total{{path="/predict",status="200"}} {len(statuses) + 2}.0'
            wait_until(lambda: answered in told(), 30, told)

            def replaced() -> bool:
                alive = replicas_of(server)
                return len(alive) == 2 and replicas[0] not in alive and 'version="1"} 2.0' in told()

            os.kill(replicas[0], signal.SIGKILL)
            assert set(asked_until(replaced, client)) <= {200, 503}, "a question in flight is asked again elsewhere"
            assert client.get("/healthz").status_code == 200
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        wait_until(lambda: not processes_with(server.token), 20, lambda: str(processes_with(server.token)))


def check_answers(client: httpx.Client) -> None:
    """Replicas answer as one process does: labels, classes, mistakes."""
    [expected] = serving.predictor(1).predict([picture(3)])
    answer = client.post("/predict", json={"image": in_base64(picture(3))}).json()
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
    named = {"image": in_base64(picture(3)), "class_names": ["cat", "dog"], "top_k": 1}
    assert client.post("/predict", json=named).json()["probabilities"].keys() < {"cat", "dog"}
    assert client.get("/classes").json()["class_names"] == serving.CLASSES
    assert client.get("/readyz").json()["model"]["version"] == 1
    refused = client.post("/predict", json={"image": in_base64(b"no image")})
    assert refused.status_code == 422 and list(refused.json()) == ["error"]


def asked_until(condition: Callable[[], bool], client: httpx.Client, clients: int = 3) -> list[int]:
    """The statuses of all answers to several who asked without a pause until the condition held."""
    statuses, enough = [], threading.Event()

    def ask(number: int) -> None:
        question = {"image": in_base64(picture(number))}
        while not enough.is_set():
            statuses.append(client.post("/predict", json=question).status_code)

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask, number) for number in range(clients)]
        try:
            wait_until(condition, PATIENCE, lambda: str(Counter(statuses)))
        finally:
            enough.set()
        for one in asking:
            one.result()
    return statuses


def replicas_of(server: serving.Server) -> list[int]:
    return [pid for pid in processes_with(server.token) if "ServeReplica" in title(pid)]


def title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
