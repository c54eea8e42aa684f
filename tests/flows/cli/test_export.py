"""`mmrl export`: the champion, a folder or other classes as an ONNX file, and nothing where that fails."""

import json

import onnxruntime
import pytest

from mmrl_core import export
from mmrl_core.data.shards import read_examples
from mmrl_core.data.views import decode
from mmrl_core.data.views import test_views as views_of
from mmrl_core.predict import Predictor

MODEL = "models/digits/mmrl-2shot/seed1"
BASE = ["zero", "one", "two", "three", "four"]


def read_card(folder) -> dict:
    return json.loads((folder / "model.json").read_text())


def test_without_a_name_the_champion_is_exported(project, mmrl, tmp_path):
    mmrl("register")
    mmrl("promote")
    line, after = mmrl("export", "--out", tmp_path / "onnx").splitlines()
    assert line.startswith(f"{tmp_path / 'onnx'}: classes 5, opset 18, ")
    assert after.startswith("next: onnxruntime runs model.onnx; model.json says how")
    assert mmrl.error == ""
    card = read_card(tmp_path / "onnx")
    assert card["class_names"] == BASE
    assert card["adapter"]["sha256"] == json.loads((project / MODEL / "adapter.json").read_text())["sha256"]


def test_a_file_of_other_classes_labels_digits_as_predict_does(project, mmrl, tmp_path):
    names = ["seven", "two", "nine"]
    classes = [argument for name in names for argument in ("--class", name)]
    out = tmp_path / "deep" / "onnx"
    said = json.loads(mmrl("export", "--model", MODEL, "--out", out, *classes, "--json"))
    assert mmrl.error == ""
    assert said["classes"] == 3 and said["files"] == read_card(out)["files"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["onnx"]

    predictor, examples = Predictor.load(MODEL), read_examples("data/digits/pool", "val", "base")[:6]
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    images = views_of([decode(one.image, one.path) for one in examples], predictor.model.backbone.view_settings).numpy()
    (probabilities,) = session.run(["probabilities"], {"images": images})
    for row, one in zip(probabilities, predictor.predict([e.image for e in examples], names), strict=True):
        assert row == pytest.approx(list(one.probabilities.values()), rel=1e-3, abs=1e-6)


def damage(project) -> None:
    path = project / MODEL / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def contents(folder) -> dict:
    """Every file but what MLflow's store keeps; locks and the folder aside hold nothing when all is done."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.read_bytes() for path in files if not path.name.startswith("mlflow.db")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--out'"),
        (["--out", "reports", "--model", MODEL], "--out reports exists; name a new path"),
        (["--out", "models/onnx", "--model", MODEL], "lies in models/, which is kept by other tools"),
        (["--out", "params.yaml/onnx", "--model", MODEL], "params.yaml is no folder"),
        (["--out", "onnx", "--model", "nowhere"], "nowhere/adapter.json does not exist"),
        (["--out", "onnx"], "no model 'digits-base-to-novel' is registered"),
        (["--out", "onnx", "--model", "models:/digits"], "not of the form models:/NAME@ALIAS"),
        (["--out", "onnx", "--model", MODEL, "--class", "cat", "--class", "cat"], "make the same prompt"),
        (["--out", "onnx", "--model", MODEL, "--classes", "none.txt"], "cannot read --classes none.txt"),
        (["--out", "onnx", "--model", MODEL, "--set", "train.speed=1"], "train.speed"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line_and_leaves_nothing(project, mmrl, arguments, message):
    before = contents(project)
    error = mmrl("export", *arguments, code=2)
    assert message in error and error.count("\n") == 1
    assert contents(project) == before


def test_a_damaged_adapter_is_refused_and_leaves_nothing(project, mmrl):
    damage(project)
    before = contents(project)
    error = mmrl("export", "--model", MODEL, "--out", "onnx", code=2)
    assert "adapter.safetensors does not match the sha256" in error and error.count("\n") == 1
    assert contents(project) == before


def test_a_file_that_differs_from_pytorch_never_gets_its_name(project, mmrl, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    before = contents(project.parent)
    error = mmrl("export", "--model", MODEL, "--out", "../onnx", code=2)
    assert "logits of model.onnx at batch size 1 differ from PyTorch's" in error and error.count("\n") == 1
    assert contents(project.parent) == before
    assert not (project.parent / "onnx").exists()
