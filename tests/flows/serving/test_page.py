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
const fetch = async () => { throw new Error("nobody answers"); };
const setInterval = () => {};
"""
SHOW = """
show(JSON.parse(require("fs").readFileSync(0, "utf8")));
console.log(JSON.stringify($("bars").children.map(row => row.children[0].children.map(one => one.textContent))));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
def test_the_page_shows_the_likeliest_class_first_also_where_names_are_numbers():
    script = re.search(r"<script>(.*)</script>", PAGE.read_text(), re.S)[1]
    probabilities = {"7": 0.6, "cat": 0.2, "10": 0.125, "2": 0.075}
    model = {"name": "digits", "version": 1, "adapter_sha256": "0" * 64}
    found = {"label": "7", "probability": 0.6, "probabilities": probabilities, "model": model}
    command = ["node", "-e", BROWSER + script.replace('"use strict";', "") + SHOW]
    done = subprocess.run(command, input=json.dumps(found), text=True, capture_output=True, check=True)
    assert json.loads(done.stdout) == [["7", "60.0 %"], ["cat", "20.0 %"], ["10", "12.5 %"], ["2", "7.5 %"]]
