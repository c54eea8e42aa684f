"""champion.js beside the report: what it says, when it is written, and that the page shows it."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.project import paths
from flows.registry import promotion
from flows.registry.standing import show_champions, standing
from flows.report.champions import Standing, place, script
from mmrl_core.files import write_json
from tests.support.registry.promotions import NAME, PARAMS, crown, promote, register

ONE = Standing(NAME, 3, "MMRL++", "16", "2", {"base": 0.9825, "harmonic mean": 0.5}, "accepted", "then", "")


def test_the_champion_is_named_with_the_decision_that_made_it_and_the_last_one(digits_project):
    assert standing(PARAMS, "digits") is None  # nothing is registered
    crown("bad")
    register("good")
    promote(force="asked for")
    one = standing(PARAMS, "digits")
    assert (one.name, one.version, one.verdict) == (NAME, 2, "forced")
    assert one.latest.startswith(f"{NAME} version 2 is forced: asked for (")
    promotion.rollback(PARAMS, "digits", "wrong on Tuesdays")
    promote(version=2)
    one = standing(PARAMS, "digits")
    assert (one.version, one.verdict) == (1, "rolled back")
    assert one.latest.startswith(f"{NAME} version 2 is refused: it was rolled back")
    assert (one.method, one.shots, one.seed) == ("MMRL++", "2", "1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", one.when)


def test_the_file_is_written_beside_a_report_alone_and_a_store_that_fails_is_said(digits_project):
    said = []
    show_champions(PARAMS, said.append)
    assert not paths.CHAMPION.exists()
    paths.SUMMARY.parent.mkdir()
    write_json(paths.SUMMARY, {"rows": []})
    show_champions(PARAMS, said.append)
    of = hashlib.sha256(paths.SUMMARY.read_bytes()).hexdigest()
    assert "No champion yet" in paths.CHAMPION.read_text() and of in paths.CHAMPION.read_text()
    before = paths.CHAMPION.read_bytes()
    Path("mlflow.db").write_bytes(b"no database")
    show_champions(PARAMS, said.append)
    [line] = said
    assert line.startswith("the report does not name the champion: ") and "\n" not in line
    assert paths.CHAMPION.read_bytes() == before


def test_what_people_wrote_cannot_write_html():
    text = script([ONE._replace(latest="</script><b onload=x>")], None, "now", "0")
    assert "<b onload" not in text and "outside of a git repository" in text


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
@pytest.mark.parametrize("of", ["same", "another"])
def test_the_page_shows_it_and_says_where_it_is_of_other_results(of):
    [name, made_of] = re.search(r'<div id="(\w+)" data-of="(\w+)">', place(of)).groups()
    browser = f'const one = {{dataset: {{of: "{made_of}"}}}};'
    browser += f'const document = {{getElementById: id => id === "{name}" ? one : null}};'
    shown = "console.log(JSON.stringify(one.innerHTML));"
    code = browser + script([ONE], "0123-dirty", "2026-11-29 14:45 UTC", "same") + shown
    text = json.loads(subprocess.run(["node", "-e", code], text=True, capture_output=True, check=True).stdout)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert cells == [f"{NAME} version 3", "MMRL++", "16", "2", "base 98.2, harmonic mean 50.0", "accepted", "then"]
    assert "Written 2026-11-29 14:45 UTC, at commit 0123-dirty." in text
    assert ("Of other results" in text) == (of == "another")
