"""From the wheel, in a new environment and an empty folder: what a user does who has no clone."""

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from mmrl_core import open_source
from tests.documents.commands import BLOCK
from tests.slow.installed.environment import Environment
from tests.support.processes import TOKEN, end_all
from tests.support.workspace import ROOT

pytestmark = pytest.mark.slow

BETWEEN = "-- next --"
CLASSES = ("zero", "one", "two")
PIPELINE = ("ray", "prefect", "mlflow", "dvc", "fastapi", "pandas", "optuna", "matplotlib", "sqlalchemy")
THREE_LINES = """
import sys, mmrl
from pathlib import Path
images = {folder.name: sorted(folder.iterdir()) for folder in Path(sys.argv[1]).iterdir()}
adapter = mmrl.adapt(images, epochs=2)
print(adapter.predict(images["zero"][0]).label)
adapter.save("adapter")
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment") / "pipeline", "pipeline", "3.13")


@pytest.fixture(scope="module")
def core(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment") / "core", "core", "3.12")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of class folders: scans of three digits, 20 each."""
    source, folder = open_source("digits", ""), tmp_path_factory.mktemp("mine") / "pictures"
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number, item in enumerate([one for one in source.train if one.class_name == name][:20]):
            Image.open(io.BytesIO(source.read(item))).resize((48, 48)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def guided(pipeline, tmp_path_factory) -> tuple[Path, list[tuple[str, str]]]:
    """docs/guides/first-ten-minutes.md as a reader goes through it, but for the installation: the project, and what
    each block said on stdout and stderr."""
    guide, folder = (ROOT / "docs/guides/first-ten-minutes.md").read_text(), tmp_path_factory.mktemp("empty")
    install, *blocks = [block for language, block in BLOCK.findall(guide) if not language]
    assert "pip install 'mmrl-ops[pipeline]'" in install
    script = "".join(f"{block}echo {BETWEEN}\necho {BETWEEN} >&2\n" for block in blocks)
    done = pipeline.run(folder, "bash", "-euc", script)
    return folder / "first", list(zip(done.stdout.split(BETWEEN), done.stderr.split(BETWEEN), strict=True))


def test_the_first_ten_minutes_are_as_they_are_told(guided):
    folder, said = guided
    assert "next: cd first && mmrl flow adapt" in said[0][0]
    assert "| digits | 4 | MMRL++" in said[1][0] and "1 adapters registered, 1 promoted" in said[1][1]
    assert "nothing to do" in said[2][1]
    labels = rows(folder / "labels.csv")
    assert {row["label"] for row in labels} == {"zero", "one", "two", "three", "four"}
    assert len(rows(folder / "other.csv")) == len(labels) == len(list(folder.glob("pictures/*.png")))
    assert "there was no champion" in said[4][0]
    assert (folder / "onnx/model.onnx").exists() and list(folder.glob("releases/**/onnx/model.onnx"))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_dvc_finds_all_done_and_so_does_upgrade(pipeline, guided):
    folder, _ = guided
    again = pipeline.run(folder, "dvc", "repro").stdout
    assert re.findall(r"Running stage '(\w+)", again) == ["fingerprint"]
    assert pipeline.run(folder, "mmrl", "upgrade").stdout.startswith("nothing to do")


def test_images_of_ones_own_make_a_project(pipeline, pictures, tmp_path):
    found = pipeline.run(tmp_path, "mmrl", "init", "mine", "--images", str(pictures)).stdout
    assert "found pictures: 60 images of 3 classes (one, two, zero); protocol few-shot" in found
    assert "complete" in pipeline.run(tmp_path / "mine", "mmrl", "check", "--dataset", "pictures").stdout
    pool = pipeline.run(tmp_path / "mine", "dvc", "repro", "prepare_pool@pictures")
    assert "photographs" in pool.stdout + pool.stderr and (tmp_path / "mine/data/pictures/pool/manifest.json").exists()


def test_the_champion_is_served(pipeline, guided, pictures):
    (folder, _), picture = guided, pictures / "zero/0.png"
    with served(pipeline, folder) as address:
        assert httpx.get(f"{address}/readyz", timeout=120).status_code == 200
        answer = httpx.post(f"{address}/predict", files={"image": picture.read_bytes()}, timeout=120).json()
        assert "<html" in httpx.get(address, timeout=120).text
    predicted = json.loads(pipeline.run(folder, "mmrl", "predict", str(picture), "--json").stdout)
    assert answer["label"] == predicted[str(picture)]["label"]


@contextlib.contextmanager
def served(environment: Environment, folder: Path) -> Iterator[str]:
    token = uuid.uuid4().hex
    command = [str(environment.folder / "bin/mmrl"), "serve", "--port", "0", "--json"]
    with (folder / "serve.err").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment.variables | {TOKEN: token},
                                   stdout=subprocess.PIPE, stderr=log, text=True)  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line, (folder / "serve.err").read_text()
        yield json.loads(line)["address"]
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        end_all(token)


def test_the_core_alone_adapts_predicts_and_exports(core, pictures, tmp_path):
    """In three lines of Python; of the pipeline's packages none is there."""
    absent = f"import importlib.util as u; print([m for m in {PIPELINE} if u.find_spec(m)])"
    assert core.run(tmp_path, "python", "-c", absent).stdout == "[]\n"
    (tmp_path / "three.py").write_text(THREE_LINES)
    assert core.run(tmp_path, "python", "three.py", str(pictures)).stdout.splitlines()[-1] == "zero"
    one = str(pictures / "zero/0.png")
    predicted = json.loads(core.run(tmp_path, "mmrl", "predict", one, "--model", "adapter", "--json").stdout)
    assert predicted[one]["label"] == "zero"
    core.run(tmp_path, "mmrl", "export", "--model", "adapter", "--out", "onnx")
    assert (tmp_path / "onnx/model.onnx").exists()


def test_the_core_alone_embeds_checks_and_lists(core, pictures, tmp_path):
    core.run(tmp_path, "mmrl", "embed", str(pictures), "--out", "features.parquet")
    assert (tmp_path / "features.parquet").stat().st_size > 0
    assert "complete" in core.run(tmp_path, "mmrl", "check", str(pictures)).stdout
    assert "signboards" in core.run(tmp_path, "mmrl", "datasets").stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["init"], "DVC is not installed; run pip install 'mmrl-ops[pipeline]'"),
        (["flow", "adapt"], "Prefect is not installed; run pip install 'mmrl-ops[pipeline]'"),
        (["serve"], "Ray is not installed; run pip install 'mmrl-ops[serve]'"),
        (["summarize"], "pandas is not installed; run pip install 'mmrl-ops[pipeline]'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_names_the_extra_that_it_lacks(core, tmp_path, command, said):
    if command != ["init"]:
        for name in ("params.yaml", "versions.yaml"):
            shutil.copy(ROOT / name, tmp_path)
    refused = core.run(tmp_path, "mmrl", *command, code=2)
    assert refused.stderr.splitlines()[-1].startswith("mmrl: ") and said in refused.stderr
    assert "Traceback" not in refused.stderr
