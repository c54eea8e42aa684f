"""Prefect's artifacts of a run: which keys they have, and what is said of those that cannot be published."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flows.orchestration.up_to_date import Adapted
from flows.registry.promotion import PromotionDecision
from flows.registry.versions import RegisteredVersion, registered_name
from flows.settings.params import Params
from flows.tracking.store import set_environment


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where Prefect keeps its files
    set_environment()
    from flows.orchestration import artifacts

    return artifacts


@pytest.fixture
def published(artifacts, monkeypatch):
    """What Prefect's API was sent, by key."""
    from prefect.events.clients import NullEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings

    sent = {}
    monkeypatch.setattr(EventsWorker, "_client_override", (NullEventsClient, ()))  # or it waits for an answer

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent[body["key"]] = body["data"]
            self.send_response(201)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
            yield sent
        server.shutdown()


def test_every_name_of_a_dataset_has_a_key_that_prefect_takes_and_that_no_other_has(artifacts):
    from prefect.client.schemas.actions import ArtifactCreate

    names = ["a-b", "a_b", "A_b", "A-b", "a--b", "a_-b", "a-", "a_", "9", "stanford_cars", "Photos"]
    keys = {artifacts.artifact_key(registered_name(name, "base-to-novel")) for name in names}
    assert [ArtifactCreate(key=key).key for key in keys] == list(keys)
    assert len(keys) == len(names)
    assert "a-b-base-to-novel" in keys and any(key.startswith("stanford-cars-base-to-novel-") for key in keys)


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow:FutureWarning")
def test_a_run_that_cannot_be_linked_is_said_and_the_results_are_published(artifacts, published):
    said = []
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and not listening
        uri = f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}"
        params = Params(datasets=["A"], methods=["mmrl"], shots=[1], seeds=[1], tracking={"uri": uri})
        version = RegisteredVersion("A-base-to-novel", 3, "0" * 64, created=True)
        decision = PromotionDecision(
            "A-base-to-novel", 3, None, True, "first", ["there was no champion"], "MMRL, 1 shot"
        )
        artifacts.publish(params, Adapted(["train"], 0, {"A": version}, {"A": decision}), said.append)
    [line] = said
    assert line.startswith("no link from Prefect to the training run of A-base-to-novel version 3: the MLflow store")
    assert "secret" not in line + published["results"]
    assert "- version 3 of `A-base-to-novel`: see MLflow" in published["results"]
    assert "- champion of A: MMRL, 1 shot; models:/A-base-to-novel version 3\n" in published["results"]
