"""docs/guides/asking.md: its lines run as a reader would run them, against the real server on loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.commands import BLOCK
from tests.support.serving import ABSTAIN, CLASSES, picture
from tests.support.workspace import ROOT

PAGE = (ROOT / "docs/guides/asking.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "digit.png").write_bytes(picture(1))
    return tmp_path


def blocks(language: str, address: str) -> list[str]:
    return [block.replace(ADDRESS, address) for kind, block in BLOCK.findall(PAGE) if kind == language]


def output(folder: Path, *command: str) -> str:
    """What a command prints there; Python finds what lies there."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_the_lines_of_the_shell_are_answered(address, predictor, folder):
    lines = [line for block in blocks("", address) for line in block.splitlines()]
    answers = [json.loads(output(folder, "bash", "-euc", f"{line} --silent")) for line in lines]
    [expected] = predictor.predict([picture(1)])
    [of_two] = predictor.predict([picture(1)], ["cat", "dog"])
    plain, other, abstaining, in_json, known, again = answers
    assert plain["label"] == again["label"] == expected.label
    assert (other["label"], len(other["probabilities"])) == (of_two.label, 2)
    assert abstaining["abstained"] is (expected.confidence < ABSTAIN["threshold"])
    assert list(in_json["probabilities"].items())[:3] == list(plain["probabilities"].items())[:3]
    assert known["class_names"] == CLASSES


def test_the_lines_of_python_are_answered(address, predictor, folder):
    ours, anybodys, _ = blocks("python", address)
    [expected] = predictor.predict([picture(1)])
    [of_two] = predictor.predict([picture(1)], ["cat", "dog"])
    label, probability, version, *other = output(folder, sys.executable, "-c", ours).split()
    assert (label, float(probability), version) == (expected.label, pytest.approx(expected.probability), "3")
    assert " ".join(other) == ("none of them" if of_two.confidence < ABSTAIN["threshold"] else of_two.label)
    assert output(folder, sys.executable, "-c", anybodys).strip() == expected.label


def test_a_client_is_made_from_the_description_and_asks(address, predictor, folder):
    generate, repair = [line for block in blocks("sh", address) for line in block.splitlines()]
    output(
        folder,
        sys.executable,
        "-m",
        "openapi_python_client",
        *generate.removeprefix("uvx openapi-python-client").split(),
    )
    output(folder, "bash", "-c", repair)
    [expected] = predictor.predict([picture(1)])
    assert output(folder, sys.executable, "-c", blocks("python", address)[2]).strip() == expected.label
    in_json = f"""
import base64
from labels.api.default import classes, predict
from labels.client import AuthenticatedClient
from labels.models import Answer, Known, PredictJsonJsonQuestion as Question, Problem
image = base64.b64encode(open("digit.png", "rb").read()).decode()
with AuthenticatedClient("{address}", "a key") as server:
    answer = predict.sync(client=server, body=Question(image, class_names=["cat", "dog"], top_k=1, abstain=True))
    assert isinstance(answer, Answer) and answer.model.version == 3 and answer.abstained is not None, answer
    assert len(answer.probabilities.additional_properties) == 1
    wrong = predict.sync_detailed(client=server, body=Question("bm8gaW1hZ2U="))
    assert wrong.status_code == 422 and isinstance(wrong.parsed, Problem), wrong
    known = classes.sync(client=server)
    assert isinstance(known, Known) and known.abstain.threshold == {ABSTAIN["threshold"]}, known
    print(answer.label, *known.class_names)
"""
    [of_two] = predictor.predict([picture(1)], ["cat", "dog"])
    assert output(folder, sys.executable, "-c", in_json).split() == [of_two.label, *CLASSES]
