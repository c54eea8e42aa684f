"""What the page does with an answer, by its own script in Node.js."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.support.workspace import ROOT

PAGE = ROOT / "flows/serving/pages/index.html"
# As much of a browser as the script needs.
BROWSER = """
const element = () => ({value: "", style: {}, classList: {toggle() {}}, children: [], addEventListener() {},
  append(...more) { this.children.push(...more); }, replaceChildren(...all) { this.children = all; }});
const elements = {};
const document = {createElement: element, getElementById: id => elements[id] ??= element(), addEventListener() {}};
const sessionStorage = {getItem: () => null, setItem() {}};
let fetch = async () => { throw new Error("nobody answers"); };
const setInterval = () => {};
"""
SHOW = """
show(JSON.parse(require("fs").readFileSync(0, "utf8")));
console.log(JSON.stringify($("bars").children.map(row => row.children[0].children.map(one => one.textContent))));
"""


CLASSES = """
const [ready, found] = JSON.parse(require("fs").readFileSync(0, "utf8"));
fetch = async (path, options) => ({ok: true, json: async () => path === "readyz" ? ready : found});
state().then(() => new Promise(soon => setTimeout(soon, 0))).then(
  () => console.log(JSON.stringify([$("knows").textContent, ...$("names").children.map(one => one.textContent)])));
"""

ABSTAIN = """
const {ready, found, ticked, answer} = JSON.parse(require("fs").readFileSync(0, "utf8"));
let sent = [];
fetch = async (path, options) => {
  if (path === "predict") sent = [...options.body.entries()].filter(([name]) => name !== "image");
  return {ok: true, json: async () => ({readyz: ready, classes: found, predict: answer})[path]};
};
(async () => {
  await state();
  await new Promise(soon => setTimeout(soon, 0));
  $("abstain").checked = ticked;
  image = new Blob(["an image"]);
  await ask();
  const texts = ["means", "label", "sure"].map(id => [id, $(id).textContent]);
  const shown = {offered: !$("doubt").hidden, bars: $("bars").className, ...Object.fromEntries(texts)};
  console.log(JSON.stringify({...shown, sent: Object.fromEntries(sent)}));
})();
"""
MODEL = {"name": "digits", "version": 1, "adapter_sha256": "0" * 64}


def run_script(after: str, given) -> Any:
    """What the page's own script and more lines print, given JSON."""
    script = re.search(r"<script>(.*)</script>", PAGE.read_text(), re.S)[1]
    command = ["node", "-e", BROWSER + script.replace('"use strict";', "") + after]
    done = subprocess.run(command, input=json.dumps(given), text=True, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
def test_the_page_shows_the_likeliest_class_first_also_where_names_are_numbers():
    probabilities = {"7": 0.6, "cat": 0.2, "10": 0.125, "2": 0.075}
    found = {"label": "7", "probability": 0.6, "probabilities": probabilities, "model": MODEL}
    assert run_script(SHOW, found) == [["7", "60.0 %"], ["cat", "20.0 %"], ["10", "12.5 %"], ["2", "7.5 %"]]


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
@pytest.mark.parametrize(("number", "said"), [(2, "It knows 2 classes:"), (61, "It knows 61 classes, such as:")])
def test_the_page_lists_the_classes_that_it_knows_before_an_image_comes(number, said):
    names = [f"class {index}" for index in range(number)]
    shown = run_script(CLASSES, [{"ready": True, "model": MODEL}, {"class_names": names, "model": MODEL}])
    assert shown == [said, *names[:60]]


def asked(ticked: bool, threshold: dict | None, **answer) -> dict[str, Any]:
    """What the page shows of an answer with the tick set or not, where the adapter has that threshold."""
    found = {"class_names": ["7", "8"], "abstain": threshold, "model": MODEL}
    answer = {"label": "7", "probability": 0.6, "probabilities": {"7": 0.6, "8": 0.4}, "model": MODEL} | answer
    given = {"ready": {"ready": True, "model": MODEL}, "found": found, "ticked": ticked, "answer": answer}
    return run_script(ABSTAIN, given)


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
def test_the_page_says_when_none_of_the_classes_fits_if_it_is_asked_to():
    threshold = {"threshold": 0.83, "keep": 0.95}
    shown = asked(True, threshold, confidence=0.415, abstained=True)
    assert shown["offered"] and "less like them than 95 % of the pictures" in shown["means"]
    assert shown["sent"] == {"top_k": "8", "abstain": "true"}
    assert (shown["label"], shown["bars"]) == ("None of these, probably", "doubtful")
    assert shown["sure"] == (
        "“7” is the likeliest, but the picture is not like it: confidence 0.415 is below the threshold of 0.830."
    )
    fits = asked(True, threshold, confidence=0.9, abstained=False)
    assert (fits["label"], fits["bars"]) == ("7", "")
    assert fits["sure"] == "60.0 % among its classes; confidence 0.900 reaches the threshold of 0.830"
    close = asked(True, threshold, confidence=0.8299, abstained=True)
    assert close["sure"].endswith("confidence 0.82990 is below the threshold of 0.83000.")
    newer = asked(True, threshold, confidence=0.4, abstained=True, model=MODEL | {"adapter_sha256": "1" * 64})
    assert newer["sure"].endswith("confidence 0.400 is below the threshold.")


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
@pytest.mark.parametrize(("ticked", "threshold"), [(False, {"threshold": 0.83, "keep": 0.95}), (True, None)])
def test_the_page_does_not_ask_for_it_otherwise(ticked, threshold):
    shown = asked(ticked, threshold, confidence=0.4)
    assert shown["offered"] is (threshold is not None)
    assert shown["sent"] == {"top_k": "8"}
    assert (shown["label"], shown["sure"]) == ("7", "60.0 % among its classes")
