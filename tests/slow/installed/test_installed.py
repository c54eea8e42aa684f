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
from tests.slow.installed.environment import Environment
from tests.support.processes import TOKEN, end_all
from tests.support.workspace import ROOT

pytestmark = pytest.mark.slow

QUICK = ["methods=[mmrl]", "seeds=[1]", "baselines=[linear_probe]", "train.epochs=2", "search.enabled=false"]
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
def project(pipeline, pictures, tmp_path_factory) -> Path:
    """Made in an empty folder in three commands; the champion is there."""
    folder = tmp_path_factory.mktemp("empty")
    found = pipeline.run(folder, "mmrl", "init", "--images", str(pictures)).stdout
    assert "found pictures: 60 images of 3 classes (one, two, zero); protocol few-shot" in found
    assert "complete" in pipeline.run(folder, "mmrl", "check", "--dataset", "pictures").stdout
    changes = [word for one in QUICK for word in ("--set", one)]
    adapted = pipeline.run(folder, "mmrl", "flow", "adapt", *changes)
    assert "1 adapters registered, 1 promoted" in adapted.stderr
    assert "champion of pictures: " in adapted.stdout
    note = "pictures: the backbone tiny was trained on rendered letters"
    assert adapted.stderr.count(f"warning: {note}") == 1 and f"note: {note}" in adapted.stdout
    return folder


def test_the_champion_labels_the_photographs(pipeline, project, pictures):
    pipeline.run(project, "mmrl", "predict", str(pictures), "--out", "labels.csv")
    with (project / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert sum(row["label"] == Path(row["path"]).parent.name for row in rows) >= 50


def test_the_champion_is_exported(pipeline, project):
    pipeline.run(project, "mmrl", "export", "--out", "onnx")
    assert json.loads((project / "onnx/model.json").read_text())["class_names"] == ["one", "two", "zero"]


def test_dvc_finds_all_done_and_makes_again_what_is_gone(pipeline, project):
    again = pipeline.run(project, "dvc", "repro").stdout
    assert re.findall(r"Running stage '(\w+)", again) == ["fingerprint"]
    shutil.rmtree(project / "data/pictures/16shot-seed1")
    shutil.rmtree(project / ".dvc/cache")
    again = pipeline.run(project, "dvc", "repro").stdout
    assert re.findall(r"Running stage '(\w+)", again) == ["fingerprint", "prepare"]
    assert pipeline.run(project, "mmrl", "upgrade").stdout.startswith("nothing to do")


def test_the_champion_is_served(pipeline, project, pictures):
    picture = pictures / "zero/0.png"
    with served(pipeline, project) as address:
        assert httpx.get(f"{address}/readyz", timeout=120).status_code == 200
        answer = httpx.post(f"{address}/predict", files={"image": picture.read_bytes()}, timeout=120).json()
        assert "<html" in httpx.get(address, timeout=120).text
    predicted = json.loads(pipeline.run(project, "mmrl", "predict", str(picture), "--json").stdout)
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
