"""What serving counts and logs, and what drift is told from it."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from flows.serving import prediction_log
from flows.serving.drift import drift, measured
from flows.serving.follower import Follower, Live, PredictionJob, score
from flows.serving.metrics import Metrics, MetricsAggregator
from tests.flows.conftest import Shell
from tests.support.serving import NAME, URI, app_of, app_with_metrics, in_base64, picture

GOOD = in_base64(picture(0))


@pytest.fixture
def client(predictor):
    return TestClient(app_of(predictor))


def samples(text: str) -> dict[tuple[str, str], float]:
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(one.name, json.dumps(one.labels, sort_keys=True)): one.value for one in found}


def test_metrics_count_requests_by_status_and_name_the_version(client, predictor):
    client.post("/predict", json={"image": GOOD})
    client.post("/predict", json={"image": "!"})
    client.get("/strange/path")
    found = samples(client.get("/metrics").text)
    for path, status in (("/predict", "200"), ("/predict", "422"), ("other", "404")):
        assert found["mmrl_requests_total", json.dumps({"path": path, "status": status})] == 1
    assert found["mmrl_request_seconds_count", '{"path": "/predict"}'] == 2
    sha256 = predictor.card["sha256"]
    labels = json.dumps({"adapter_sha256": sha256, "name": NAME, "version": "3"})
    assert found["mmrl_model_replicas", labels] == 1
    assert found["mmrl_model_problem_replicas", "{}"] == 0


def test_images_less_confident_than_those_of_validation_are_counted_beside_what_is_usual(client, predictor):
    for number in range(4):  # ABSTAIN's threshold is above all of them, and keeps 95%
        client.post("/predict", json={"image": in_base64(picture(number))})
        client.post("/predict", json={"image": in_base64(picture(number)), "class_names": ["cat", "dog"]})
    found = samples(client.get("/metrics").text)
    version = json.dumps({"adapter_sha256": predictor.card["sha256"], "name": NAME, "version": "3"})
    assert found["mmrl_strange_predictions_total", version] == 4
    assert found["mmrl_strange_predictions_expected_total", version] == pytest.approx(0.2)


def test_what_the_follower_has_counted_is_counted_once_however_often_it_is_asked_for():
    follower = Follower(URI, "sqlite:///none.db", 1)
    metrics = Metrics(follower)
    for loads, failures in ((0, 0), (2, 1), (2, 1), (3, 1)):
        follower.loads, follower.failures = loads, failures
        counted = {sample: value for *_, values in metrics.families() for sample, _, value in values}
        assert counted["mmrl_model_loads_total"] == loads and counted["mmrl_follow_failures_total"] == failures


def test_metrics_that_two_threads_ask_for_at_once_name_the_version_in_both(predictor):
    first_has_looked, second_looks = threading.Event(), threading.Event()

    class Slow(Live):
        @property
        def identity(self) -> dict[str, str | int]:
            if first_has_looked.is_set():
                second_looks.set()
                time.sleep(0.2)  # while the first goes on
            return super().identity

    class Paused:
        current, loads, failures = Slow(NAME, 3, predictor), 0, 0

        @property
        def problem(self) -> None:
            first_has_looked.set()
            second_looks.wait(0.5)

    metrics = Metrics(Paused())
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(metrics.families)
        first_has_looked.wait()
        second = threads.submit(metrics.families)
    for asked in (first, second):
        replicas = {name: samples for name, *_, samples in asked.result()}["mmrl_model_replicas"]
        assert [value for *_, value in replicas] == [1]


def test_a_share_of_the_predictions_is_logged_in_lines_and_old_ones_make_room(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_log, "FILE_BYTES", 2000)
    monkeypatch.setattr(prediction_log, "OLDER_FILES", 1)
    live = Live(NAME, 3, predictor)
    job = PredictionJob(live, predictor.view(picture(0), "it"), live.trained)
    [found] = score([job])
    always, never = (
        prediction_log.PredictionLog(tmp_path / name / "log.jsonl", share) for name, share in (("a", 1), ("n", 0))
    )
    for _ in range(30):
        always.put(job, found)
        never.put(job, found)
    assert not list((tmp_path / "n").iterdir())
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["log.jsonl", "log.jsonl.1"]
    row = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    assert (row["label"], row["version"], row["trained_classes"]) == (found.label, 3, True)
    assert (row["strange"], row["expected"]) == (True, pytest.approx(0.05))  # ABSTAIN's threshold is above all
    (tmp_path / "a" / "log.jsonl").unlink()  # as `mmrl clean` does
    always.put(job, found)
    assert len((tmp_path / "a" / "log.jsonl").read_text().splitlines()) == 1


def test_counts_of_all_replicas_are_added_and_gauges_of_silent_ones_dropped(predictor):
    told = []
    for _ in range(2):
        app, metrics = app_with_metrics(predictor)
        TestClient(app).post("/predict", json={"image": GOOD})
        told.append(metrics.families())
    patient, silent = MetricsAggregator(silent_after=1e9), MetricsAggregator(silent_after=-1)
    patient.update("one", told[0])
    both = {name: samples for name, _, _, samples in patient.total("two", told[1])}
    assert both["mmrl_requests"] == [("mmrl_requests_total", (("path", "/predict"), ("status", "200")), 2.0)]
    assert [value for _, _, value in both["mmrl_model_replicas"]] == [2.0]
    silent.update("one", told[0])
    kept = {name: samples for name, _, _, samples in silent.total("two", told[1])}
    assert kept["mmrl_requests"] == both["mmrl_requests"] and "mmrl_model_replicas" not in kept


def rows(n: int, strange: int, version: int = 3, hours_ago: float = 0, **changes) -> list[dict]:
    time = (datetime.now(UTC) - timedelta(hours=hours_ago)).isoformat()
    row = {"time": time, "name": NAME, "version": version, "expected": 0.05, **changes}
    return [{**row, "strange": number < strange} for number in range(n)]


@pytest.mark.parametrize(
    ("n", "strange", "drifted"),
    [
        (100, 5, False),  # as usual
        (3, 3, True),  # one in 8,000 by chance
        (2, 2, False),  # one in 400 by chance: too few to tell
        (100, 15, True),
        (100, 12, False),  # one in 230 by chance
        (10_000, 700, False),  # beyond chance, and too little to matter
        (10_000, 1_000, True),
    ],
)
def test_drift_is_more_strange_images_than_chance_gives_and_than_matter(n, strange, drifted):
    found = measured(NAME, 3, rows(n, strange))
    assert (found.n, found.strange, found.drifted) == (n, strange, drifted)
    assert found.expected == pytest.approx(n / 20)


@pytest.mark.parametrize("share", [0.05, 1 - 0.95])
def test_twice_as_many_as_usual_are_drift_whatever_the_last_bits_of_the_usual_share(share):
    assert measured(NAME, 3, rows(400, 40, expected=share)).drifted
    assert not measured(NAME, 3, rows(400, 39, expected=share)).drifted


def test_drift_is_told_from_what_the_present_version_answered_of_late(tmp_path):
    lines = [*rows(50, 50, hours_ago=30), *rows(50, 50, version=2, hours_ago=2), *rows(40, 2, hours_ago=1),
             *rows(10, 0, expected=None)]  # fmt: skip
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"time": "20')
    (tmp_path / "two.jsonl.1").write_text("\n".join(map(json.dumps, rows(20, 1))))
    assert drift(tmp_path, 24) == [measured(NAME, 3, rows(60, 3))]
    assert drift(tmp_path, 48)[0].drifted
    assert drift(tmp_path / "nowhere", 24) == []
    other = [row | {"adapter_sha256": "of another"} for row in rows(10, 0)]  # the number used again
    (tmp_path / "three.jsonl").write_text("\n".join(map(json.dumps, other)))
    assert drift(tmp_path, 24) == [measured(NAME, 3, rows(10, 0))]


def test_the_command_says_whether_there_is_drift_by_its_exit_status_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    mmrl = Shell(capsys, monkeypatch)
    assert "set serving.log_share above 0" in mmrl("drift", code=2)
    folder = tmp_path / ".mmrl/predictions"
    folder.mkdir(parents=True)
    (folder / "one.jsonl").write_text("\n".join(map(json.dumps, rows(40, 20))))
    mmrl("drift", code=1)
    assert f"{NAME} version 3: drift; 20 of 40 predictions are strange, 2.0 would be usual" in mmrl.out
    (folder / "one.jsonl").write_text("\n".join(map(json.dumps, rows(40, 2))))
    assert "no drift" in mmrl("drift")
