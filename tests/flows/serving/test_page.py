"""What the page does with an answer, by its own script in Node.js."""

import json
import re
import shutil
import subprocess

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


def run_script(after: str, given) -> list:
    """What the page's own script and more lines print, given JSON."""
    script = re.search(r"<script>(.*)</script>", PAGE.read_text(), re.S)[1]
    command = ["node", "-e", BROWSER + script.replace('"use strict";', "") + after]
    done = subprocess.run(command, input=json.dumps(given), text=True, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
def test_the_page_shows_the_likeliest_class_first_also_where_names_are_numbers():
    probabilities = {"7": 0.6, "cat": 0.2, "10": 0.125, "2": 0.075}
    model = {"name": "digits", "version": 1, "adapter_sha256": "0" * 64}
    found = {"label": "7", "probability": 0.6, "probabilities": probabilities, "model": model}
    assert run_script(SHOW, found) == [["7", "60.0 %"], ["cat", "20.0 %"], ["10", "12.5 %"], ["2", "7.5 %"]]


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
@pytest.mark.parametrize(("number", "said"), [(2, "It knows 2 classes:"), (61, "It knows 61 classes, such as:")])
def test_the_page_lists_the_classes_that_it_knows_before_an_image_comes(number, said):
    names = [f"class {index}" for index in range(number)]
    model = {"name": "digits", "version": 1, "adapter_sha256": "0" * 64}
    shown = run_script(CLASSES, [{"ready": True, "model": model}, {"class_names": names, "model": model}])
    assert shown == [said, *names[:60]]
