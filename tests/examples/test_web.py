"""The page that runs the exported model: its pixels in Node.js, the whole of it in a real browser."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mmrl_core.data import views
from mmrl_core.export import resizing
from mmrl_core.predict import Predictor
from tests.examples.browser import CHROMIUM, browsing
from tests.examples.images import picture, write_images
from tests.support.workspace import ROOT, run

WEB = ROOT / "examples/web"
SIZES = [(40, 30), (30, 41), (53, 32), (20, 90), (90, 20), (10, 30), (200, 301), (32, 32)]
INPUTS = """
import fs from "fs";
import {inputOf} from "./pixels.js";
for (const line of fs.readFileSync(0, "utf8").trim().split("\\n")) {
  const {card, width, height, data} = JSON.parse(line);
  console.log(JSON.stringify([...inputOf(card, {width, height, data})]));
}
"""
ROWS = "[...document.querySelectorAll('#classes li')]"
FOUND = f"{ROWS}.map(row => [row.firstChild.textContent, +row.dataset.probability])"
NOTE = "document.getElementById('note').textContent"


def inputs(questions: list[dict]) -> list[np.ndarray]:
    """What pixels.js makes of them."""
    lines = "\n".join(map(json.dumps, questions))
    done = subprocess.run(["node", "--input-type=module", "-e", INPUTS], cwd=WEB, input=lines, text=True,
                          capture_output=True, check=True)  # fmt: skip
    return [np.float32(json.loads(line)).reshape(3, 32, 32) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
@pytest.mark.parametrize("resize_mode", views.RESIZE_MODES)
def test_a_browser_sees_pixel_by_pixel_what_the_library_sees(resize_mode):
    questions, expected = [], []
    for interpolation in ("bicubic", "bilinear"):
        settings = views.ViewSettings(32, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), resize_mode, interpolation)
        card = {"image_size": 32, "mean": settings.mean, "std": settings.std, "resizing": resizing(settings)}
        for width, height in SIZES:
            image = picture(width, height)
            data = np.asarray(image.convert("RGBA")).ravel().tolist()
            questions.append({"card": card, "width": width, "height": height, "data": data})
            expected.append(views.test_view(image, settings).numpy())
    for question, got, wanted in zip(questions, inputs(questions), expected, strict=True):
        assert np.array_equal(got, wanted), (question["card"]["resizing"], question["width"], question["height"])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        """Nothing: the test says what went wrong."""


@pytest.fixture(scope="module")
def site(tmp_path_factory, exported) -> Iterator[str]:
    """The example as its README sets it up, served; gives its address."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("index.html", "page.js", "pixels.js", "package.json", "package-lock.json"):
        shutil.copy(WEB / name, folder)
    run(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    shutil.copytree(exported, folder / "model")
    write_images(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def browser(tmp_path):
    with browsing(tmp_path / "profile") as browser:
        yield browser


needs_browser = pytest.mark.skipif(not (CHROMIUM and shutil.which("npm")), reason="there is no Chromium or no npm")


@needs_browser
@pytest.mark.slow
def test_the_page_gives_the_labels_of_predict_and_asks_nobody_else(adapter, site, browser, tmp_path):
    paths = write_images(tmp_path)
    expected = Predictor.load(adapter).predict([path.read_bytes() for path in paths])
    assert any(prediction.probability < 0.95 for prediction in expected)
    for path, prediction in zip(paths, expected, strict=True):
        assert_shown(browser, f"{site}?image={path.name}", prediction)
    browser.open(site)
    browser.wait("document.body?.dataset.state === 'ready'")
    assert browser.value(NOTE) == "knows 3 classes: zero, one, two"
    browser.choose_file("#file", paths[0])
    browser.wait("document.body.dataset.state === 'labelled'")
    assert dict(browser.value(FOUND)) == pytest.approx(expected[0].probabilities, abs=1e-4)
    assert [url for url in browser.requests if not url.startswith((site, "blob:", "data:"))] == []


def assert_shown(browser, url: str, prediction) -> None:
    browser.open(url)
    browser.wait(f"location.href === {url!r} && document.body?.dataset.state === 'labelled'")
    found = browser.value(FOUND)
    assert browser.value("document.getElementById('label').textContent") == prediction.label == found[0][0]
    assert dict(found) == pytest.approx(prediction.probabilities, abs=1e-4)


@needs_browser
@pytest.mark.slow
def test_the_page_says_what_is_missing_and_what_is_no_image(site, browser, tmp_path):
    browser.open(f"{site}?model=elsewhere")
    browser.wait("document.body?.dataset.state === 'failed'")
    assert browser.value(NOTE) == (
        "elsewhere/model.json is not there (404); `mmrl export --out elsewhere` writes the model"
    )
    browser.open(site)
    browser.wait("document.body?.dataset.state === 'ready'")
    (tmp_path / "no.png").write_bytes(b"no image")
    browser.choose_file("#file", Path(tmp_path / "no.png"))
    browser.wait("document.body.dataset.state === 'failed'")
    assert browser.value(NOTE) == "this browser cannot read that as an image; try a JPEG or PNG"
