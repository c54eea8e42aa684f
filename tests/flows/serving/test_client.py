"""The Python client, `mmrl.Client`, against the real application on loopback."""

import io
import socket
import threading

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from PIL import Image

import mmrl
from flows.serving.http.protocol import Room
from flows.serving.http.server import HttpServer
from mmrl_core.errors import Failed, UserError
from tests.flows.serving.listening import PATIENCE, listening
from tests.support.serving import ABSTAIN, CLASSES, NAME, app_of, picture


def test_an_image_is_asked_about_by_its_path_its_bytes_or_as_pillow_has_it(address, predictor, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    [expected] = predictor.predict([picture(1)])
    with mmrl.Client(address) as client:
        for image in (picture(1), tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(io.BytesIO(picture(1)))):
            answer = client.predict(image)
            assert (answer.label, answer.abstained) == (expected.label, None)
            assert (answer.probability, answer.confidence) == pytest.approx((expected.probability, expected.confidence))
            assert list(answer.probabilities.values()) == sorted(answer.probabilities.values(), reverse=True)
        assert (answer.model["name"], answer.model["adapter_sha256"]) == (NAME, predictor.card["sha256"])
        assert client.classes() == CLASSES
        printed = client.predict(Image.new("CMYK", (9, 7)))  # which PNG has not
        assert printed.probabilities == pytest.approx(
            predictor.predict([Image.new("RGB", (9, 7), "white")])[0].probabilities
        )


def test_the_options_go_along(address, predictor):
    with mmrl.Client(address + "/") as client:
        answer = client.predict(picture(1), class_names=("cat", "dog", "two"), top_k=2, abstain=True)
        [expected] = predictor.predict([picture(1)], ["cat", "dog", "two"])
        assert (answer.label, len(answer.probabilities)) == (expected.label, 2)
        assert answer.abstained is (expected.confidence < ABSTAIN["threshold"])
        assert client.predict(picture(1), threshold=-1).abstained is False


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"class_names": []}, "answers 422: class_names"), ({"top_k": 0}, "answers 422: top_k"),
     ({"threshold": float("nan")}, "answers 422: threshold"), ({"class_names": ["\ud800"]}, "answers 4..: ")],
)  # fmt: skip
def test_a_mistake_in_a_question_is_the_servers_line(address, asked, said):
    with mmrl.Client(address) as client, pytest.raises(UserError, match=said):
        client.predict(picture(1), **asked)


def test_what_is_no_image_is_told_by_whoever_sees_it(address, tmp_path):
    with mmrl.Client(address) as client:
        for image, said in ((tmp_path / "none.png", "cannot read the image .*none.png"), (tmp_path, "cannot read"),
                            ("a\0b", "cannot read"), (b"no image", "answers 422"), (b"", "answers 422")):  # fmt: skip
            with pytest.raises(UserError, match=said) as told:
                client.predict(image)
            assert "\n" not in str(told.value)


def test_the_key_is_the_one_given_or_that_of_the_environment(predictor, monkeypatch):
    monkeypatch.delenv("MMRL_API_KEY", raising=False)
    with listening(app_of(predictor, "a key")) as place:
        for key in (None, "another"):
            with (
                mmrl.Client(place.address, key) as client,
                pytest.raises(UserError, match="answers 401: send the API key"),
            ):
                client.predict(picture(1))
        with mmrl.Client(place.address, "a key") as client:
            assert client.classes() == CLASSES
        monkeypatch.setenv("MMRL_API_KEY", "a key")
        with mmrl.Client(place.address) as client:
            assert client.predict(picture(1)).label
    for key in ("", "a\nkey", "kéy", "a\x7f"):
        with pytest.raises(UserError, match="API key is empty, or has a character"):
            mmrl.Client(key=key)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "http://", "ftp://a", "http://a:b", ""])
def test_what_is_no_address_is_a_mistake(address):
    with mmrl.Client(address) as client, pytest.raises(UserError, match="is no address of a server"):
        client.classes()


def test_a_server_that_is_not_there_or_is_another_one_fails(predictor):
    with socket.create_server(("127.0.0.1", 0)) as place:
        address = f"http://127.0.0.1:{place.getsockname()[1]}"
        with mmrl.Client(address, timeout=0.2) as silent, pytest.raises(Failed, match="did not answer in time"):
            silent.classes()
    with mmrl.Client(address) as client, pytest.raises(Failed, match="cannot be reached"):
        client.classes()
    other = FastAPI()
    other.post("/predict")(lambda: {"something": "else"})
    other.get("/classes")(lambda: [])
    with listening(other) as place, mmrl.Client(place.address) as client:
        for ask in (client.classes, lambda: client.predict(picture(1))):
            with pytest.raises(Failed, match="answers 200, and not as `mmrl serve` does"):
                ask()


def test_a_question_is_asked_again_when_the_busy_server_says(predictor):
    app, waited, said = app_of(predictor), [], iter(("3", "Wed, 21 Oct 2026 07:28:00 GMT", "2", None))

    async def busy_at_first(scope, receive, send) -> None:
        pause = next(said) if scope["type"] == "http" else None
        busy = JSONResponse({"error": "busy"}, 503 if pause != "2" else 429, {"Retry-After": pause or ""})
        await (busy if pause else app)(scope, receive, send)

    with listening(busy_at_first) as place, mmrl.Client(place.address, wait=waited.append) as client:
        assert client.predict(picture(1)).label in CLASSES
    assert waited == [3, 1, 2]
    told = pytest.raises(Failed, match="answers 503: no model is loaded")  # ask again in 5 s
    with listening(app_of(None)) as place, mmrl.Client(place.address, patience=4, wait=waited.append) as client, told:
        client.predict(picture(1))
    assert waited == [3, 1, 2]


def test_a_connection_that_the_server_has_closed_is_made_again(predictor):
    with socket.create_server(("127.0.0.1", 0)) as place:
        address, answers = f"http://127.0.0.1:{place.getsockname()[1]}", []

        def ask() -> None:
            with mmrl.Client(address) as client:
                answers.append(client.classes())

        asking = threading.Thread(target=ask)
        asking.start()
        place.accept()[0].close()  # before anything is said
        server = HttpServer(app_of(predictor), place, 60, Room("/predict", 9, lambda: None), lambda: None)
        serving = threading.Thread(target=server.answer)
        serving.start()
        asking.join(PATIENCE)
        server.should_exit = server.force_exit = True
        serving.join(PATIENCE)
    assert answers == [CLASSES]
