"""The application of `mmrl serve`, with a real predictor in this process."""

import asyncio
import io
import socket
import struct
import zlib

import httpx
import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import given
from PIL import Image
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from mmrl_core.predict import Predictor
from tests.core.data.odd_images import ODD, on_white
from tests.support.serving import ABSTAIN, NAME, app_of, in_base64, make_adapter, picture
from tests.support.workspace import write_params


@pytest.fixture
def client(predictor):
    return TestClient(app_of(predictor))


def test_an_upload_and_base64_get_the_predictors_answer_with_its_version(client, predictor):
    [expected] = predictor.predict([picture(1)])
    by_form = client.post("/predict", files={"image": picture(1)})
    by_json = client.post("/predict", json={"image": in_base64(picture(1))})
    assert by_form.status_code == by_json.status_code == 200
    answer = by_form.json()
    assert answer == by_json.json()
    assert (answer["label"], answer["probability"]) == (expected.label, pytest.approx(expected.probability))
    assert answer["confidence"] == pytest.approx(expected.confidence)
    ordered = sorted(expected.probabilities.items(), key=lambda pair: -pair[1])
    assert list(answer["probabilities"]) == [name for name, _ in ordered]
    assert answer["model"] == {"name": NAME, "version": 3, "adapter_sha256": predictor.card["sha256"]}
    assert "abstained" not in answer


def test_it_tells_its_classes_before_it_is_asked_for_one(client, predictor):
    known = client.get("/classes")
    model = {"name": NAME, "version": 3, "adapter_sha256": predictor.card["sha256"]}
    abstain = {name: ABSTAIN[name] for name in ("threshold", "keep")}
    assert known.status_code == 200
    assert known.json() == {"class_names": predictor.class_names, "abstain": abstain, "model": model}
    assert TestClient(app_of(None)).get("/classes").status_code == 503


def test_other_classes_the_best_few_and_abstaining_are_had_for_the_asking(client, predictor):
    names = ["cat", "dog", "two"]
    [expected] = predictor.predict([picture(1)], names)
    asked = {"class_names": names, "top_k": 2, "abstain": True}
    answer = client.post("/predict", json={"image": in_base64(picture(1)), **asked}).json()
    assert answer == client.post("/predict", files={"image": picture(1)}, data=asked | {"abstain": "true"}).json()
    assert answer["label"] == expected.label and len(answer["probabilities"]) == 2
    assert answer["probability"] == pytest.approx(expected.probability)
    assert answer["abstained"] is (expected.confidence < 0.99)
    certain = client.post("/predict", json={"image": in_base64(picture(1)), "threshold": -1}).json()
    assert certain["abstained"] is False


def test_a_names_probability_is_the_sum_over_its_classes(client, predictor):
    names = ["missile", "two", "missile", "sunglasses"]
    answer = client.post("/predict", json={"image": in_base64(picture(1)), "class_names": names, "top_k": 9}).json()
    assert set(answer["probabilities"]) == set(names) and len(answer["probabilities"]) == 3
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["probabilities"] == pytest.approx(predictor.predict([picture(1)], names)[0].probabilities, abs=1e-5)
    assert answer["probability"] == answer["probabilities"][answer["label"]]


@pytest.mark.parametrize("name", ["sliver.png", *ODD])
def test_an_odd_image_is_seen_as_anywhere_else(client, predictor, name):
    encoded = io.BytesIO()
    Image.linear_gradient("L").resize((20_000, 1)).save(encoded, "PNG")
    image = ODD[name](Image.linear_gradient("L").resize((40, 30)).convert("RGB")) if name in ODD else encoded.getvalue()
    answer = client.post("/predict", files={"image": image}).json()
    expected = predictor.predict([on_white(image)])[0]
    assert (answer["label"], answer["confidence"]) == (expected.label, pytest.approx(expected.confidence))


def header_only(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


GOOD = in_base64(picture(0))


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ({"json": {"image": in_base64(b"no image")}}, 422, "not an image of a known format"),
        ({"json": {"image": in_base64(picture(0)[:60])}}, 422, "cannot read the image"),
        ({"json": {"image": GOOD + "%"}}, 422, "not valid base64"),
        ({"json": {"image": "é"}}, 422, "not valid base64"),
        ({"json": {"image": 5}}, 422, "image: input should be a valid string"),
        ({"json": {}}, 422, "image: field required"),
        ({"json": []}, 422, "the body"),
        ({"json": {"image": GOOD, "class_name": ["a"]}}, 422, "class_name is not known here; known: class_names"),
        ({"json": {"image": GOOD, "class_names": []}}, 422, "class_names: list should have at least 1"),
        ({"json": {"image": GOOD, "class_names": ["a", " "]}}, 422, "class_names.1: string should have at least 1"),
        ({"json": {"image": GOOD, "class_names": ["a", "a"]}}, 422, "'a'"),
        ({"json": {"image": GOOD, "class_names": ["a", " ".join("b" * 80)]}}, 422, "has 87 tokens; shorten"),
        ({"json": {"image": GOOD, "class_names": [str(i) for i in range(11)]}}, 422, "the limit is 10; ask of less"),
        ({"json": {"image": GOOD, "top_k": 0}}, 422, "top_k"),
        ({"json": {"image": GOOD, "top_k": "3"}}, 422, "top_k: input should be a valid integer"),
        ({"json": {"image": GOOD, "threshold": 2}}, 422, "threshold"),
        ({"json": {"url": "http://127.0.0.1/cat.png"}}, 422, "not fetched from a URL"),
        ({"json": {"image": in_base64(header_only(9000, 9000))}}, 413, "9000 x 9000 pixels, the limit is 1000000"),
        ({"json": {"image": in_base64(b"\0\0\0\x18ftypheic")}}, 422, "in the format HEIC, which is not read"),
        ({"json": {"image": in_base64(bytes(300_001))}}, 413, "300001 bytes, the limit is 300000"),
        ({"files": {"image": bytes(300_001)}}, 413, "300001 bytes, the limit is 300000"),
        ({"files": {"image": bytes(3_000_000)}}, 413, "the limit is 1400000 bytes"),
        ({"files": {"picture": picture(0)}}, 422, "no file `image`"),
        ({"files": {"image": picture(0)}, "data": {"top_k": "many"}}, 422, "top_k"),
        ({"files": {"image": picture(0)}, "data": {"threshold": "nan"}}, 422, "threshold"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not valid JSON"),
        ({"content": b"[" * 2000, "headers": {"content-type": "application/json"}}, 400, "not valid JSON"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 422, "more than 2100 parts"),
        ({"json": {"image": GOOD, "class_names": [1] * 3000}}, 422, "more than 2100 parts"),
        ({"files": {"image": picture(0)}, "data": {"class_names": ["a"] * 200}}, 422, "the form has 202 parts"),
        ({"content": b'{"a\\ud800": 1}', "headers": {"content-type": "application/json"}}, 400, "not valid JSON"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form cannot be read"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, "form cannot be read"),
        ({"content": b"x", "headers": {"content-type": "image/png"}}, 415, "the content type is image/png; send"),
        ({}, 415, "the content type is not given; send multipart/form-data"),
    ],
)  # fmt: skip
def test_a_bad_question_is_answered_in_one_line_that_says_what_to_do(predictor, asked, status, says):
    client = TestClient(app_of(predictor, max_bytes=300_000, max_pixels=1_000_000, max_classes=10))
    answer = client.post("/predict", **asked)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_a_body_that_never_ends_is_cut_off_at_the_limit(predictor):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield bytes(100_000)

    async def ask() -> int:
        async def body():
            for part in endless():
                yield part

        transport = httpx.ASGITransport(app_of(predictor, max_bytes=300_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"content-type": "application/json"}
            return (await client.post("/predict", content=body(), headers=headers)).status_code

    assert asyncio.run(ask()) == 413
    assert taken <= 20


def test_without_a_threshold_in_the_adapter_abstaining_is_refused(tmp_path):
    client = TestClient(app_of(Predictor.load(make_adapter(tmp_path, 0))))
    answer = client.post("/predict", json={"image": GOOD, "abstain": True})
    assert answer.status_code == 422 and "no abstain.threshold" in answer.json()["error"]
    assert client.post("/predict", json={"image": GOOD, "threshold": 0.5}).status_code == 200


def test_only_who_has_the_key_gets_predictions_and_metrics(predictor):
    client = TestClient(app_of(predictor, key="sesame"))
    for headers in ({}, {"X-API-Key": "guess"}, {"Authorization": "Bearer guess"}, {"Authorization": "Basic x"}):
        for answer in (client.post("/predict", headers=headers), client.get("/metrics", headers=headers),
                       client.get("/classes", headers=headers)):  # fmt: skip
            assert answer.status_code == 401 and "X-API-Key" in answer.json()["error"]
    for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    for headers in ({"X-API-Key": "sesame"}, {"Authorization": "Bearer sesame"}):
        assert client.post("/predict", json={"image": GOOD}, headers=headers).status_code == 200
        assert client.get("/metrics", headers=headers).status_code == 200


def test_without_a_model_it_lives_but_is_not_ready_and_says_why():
    client = TestClient(app_of(None))
    assert client.get("/healthz").json() == {"alive": True}
    found = client.get("/readyz")
    assert (found.status_code, found.json()) == (503, {"ready": False, "problem": "the model is being loaded"})
    answer = client.post("/predict", json={"image": GOOD})
    assert answer.status_code == 503 and "no model is loaded: the model is being loaded" in answer.json()["error"]
    assert answer.headers["retry-after"]


def test_the_pages_load_nothing_from_elsewhere(client):
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "://" not in page.text and "<script src" not in page.text and "@import" not in page.text


def test_what_cannot_be_served_is_one_line_before_anything_is_started(store, tmp_path, mmrl):
    write_params(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, says in [
            (["--model", f"models:/{NAME}@winner"], "no alias 'winner' (known: champion"),
            (["--model", "champion"], "not of the form models:/NAME@ALIAS"),
            (["--port", port], f"cannot listen on 127.0.0.1:{port}"),
            (["--set", "tracking.uri=sqlite:///none.db"], "there is no MLflow store"),
        ]:
            error = mmrl("serve", "--port", "0", *options, code=2)
            assert says in error and error.count("\n") == 1, error


def test_fuzzed_against_its_description_no_question_fails_the_server(predictor):
    """Random questions, good and bad: an answer as described, or a 4xx."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app_of(predictor))
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    asked = sum(fuzz(schema["/predict"]["POST"], mode, 150) for mode in modes)
    assert asked >= 250


# No schema tells an image from other bytes, and in a form a number is as good a class name as any other text.
UNDECIDABLE = [positive_data_acceptance, negative_data_rejection]


def fuzz(operation, mode: GenerationMode, examples: int) -> int:
    """How many questions were asked."""
    asked = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    def one(case) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(excluded_checks=UNDECIDABLE)

    one()
    return asked
