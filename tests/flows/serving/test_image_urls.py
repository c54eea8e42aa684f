"""Images by URL: off unless prefixes are allowed, and then nothing but what is below them."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi.testclient import TestClient

from flows.serving import image_urls
from flows.settings.sections import ServingSection
from tests.support.serving import app_of, in_base64, picture

LIMIT = 100_000


class Pictures(BaseHTTPRequestHandler):
    """A picture below /open/, and what should not be had."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.rpartition("/")[2]
        if name == "slow.png":
            self.connection.recv(1)  # until who asked hangs up
            return
        with contextlib.suppress(ConnectionError):  # who has seen enough hangs up too
            self.send_response({"missing.png": 404, "moved.png": 302}.get(name, 200))
            self.send_header("Location", "/secret/digit.png")
            self.end_headers()
            self.wfile.write(bytes(LIMIT + 1) if name == "large.png" else picture(3))

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def client(site, predictor) -> TestClient:
    return TestClient(app_of(predictor, max_bytes=LIMIT, url_prefixes=[f"{site}/open/"]))


def test_an_image_below_a_prefix_is_answered_as_the_same_image_sent(client, site):
    asked = {"class_names": ["cat", "dog"], "top_k": 1}
    by_url = client.post("/predict", json={"url": f"{site}/open/a%20folder/digit.png", **asked})
    assert by_url.status_code == 200, by_url.text
    assert by_url.json() == client.post("/predict", json={"image": in_base64(picture(3)), **asked}).json()


@pytest.mark.parametrize("path", [
    "/secret/digit.png", "/open", "/open/../secret/digit.png", "/open/%2e%2e/secret/digit.png", "/opened/digit.png",
    "/open%2Fdigit.png",
])  # fmt: skip
def test_nothing_beside_the_prefix_is_asked_for(client, site, path):
    refused(client, f"{site}{path}", 422, f"url is not below {site}/open/; send the file itself as `image` in base64")


@pytest.mark.parametrize("other", [
    "https://{host}/open/digit.png", "http://user@{host}/open/digit.png", "http://{host}@localhost/open/digit.png",
    "http://localhost/open/digit.png", "file:///open/digit.png", "/open/digit.png",
])  # fmt: skip
def test_no_other_host_scheme_or_user_is_asked(client, site, other):
    refused(client, other.format(host=site.removeprefix("http://")), 422, "url is not below")


def refused(client, url: str, status: int, says: str) -> None:
    Pictures.asked.clear()
    answer = client.post("/predict", json={"url": url})
    assert answer.status_code == status and says in answer.json()["error"], answer.text
    assert not Pictures.asked


@pytest.mark.parametrize(("name", "status", "says"), [
    ("missing.png", 422, "missing.png answers 404; send the file itself"),
    ("moved.png", 422, "moved.png answers 302; send the file itself"),
    ("large.png", 413, "large.png is larger than 100000 bytes"),
])  # fmt: skip
def test_what_does_not_answer_with_an_image_is_one_line_and_no_redirect_is_followed(client, site, name, status, says):
    Pictures.asked.clear()
    answer = client.post("/predict", json={"url": f"{site}/open/{name}"})
    assert answer.status_code == status and says in answer.json()["error"], answer.text
    assert Pictures.asked == [f"/open/{name}"]


def test_a_slow_answer_and_a_closed_port_are_given_up(client, predictor, site, monkeypatch):
    monkeypatch.setattr(image_urls, "SECONDS", 0.2)
    answer = client.post("/predict", json={"url": f"{site}/open/slow.png"})
    assert answer.status_code == 422 and "cannot be fetched (TimeoutError)" in answer.json()["error"]
    closed = TestClient(app_of(predictor, url_prefixes=["http://127.0.0.1:1/"]))
    answer = closed.post("/predict", json={"url": "http://127.0.0.1:1/digit.png"})
    assert answer.status_code == 422 and "cannot be fetched (ConnectError)" in answer.json()["error"]


def test_the_description_names_urls_only_where_they_are_allowed(client):
    def by_json(one: TestClient) -> dict:
        body = one.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]
        return body["content"]["application/json"]["schema"]

    assert [set(kind["required"]) for kind in by_json(client)["oneOf"]] == [{"image"}, {"url"}]
    assert by_json(TestClient(app_of(None)))["required"] == ["image"]


@pytest.mark.parametrize("prefix", [
    "https://host", "https://host/folder", "host/folder/", "file:///folder/", "https://user:key@host/", "https://h/?a=/",
])  # fmt: skip
def test_a_prefix_is_a_folder_of_a_host(prefix):
    with pytest.raises(ValueError, match="ends with a slash, as https://HOST/FOLDER/"):
        ServingSection(url_prefixes=[prefix])
