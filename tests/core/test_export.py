"""ONNX files: what they compute, what lies beside them, and what is refused."""

import functools
import json
import logging
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from mmrl_core.clip.backbone import Backbone
from mmrl_core.errors import UserError
from mmrl_core.export import DECODING, Scorer, compare, export_onnx
from mmrl_core.files import sha256_file
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import Predictor
from tests.core.data.odd_images import ODD
from tests.core.followed import follow
from tests.core.method.test_folded import shaped_backbone
from tests.core.test_predict import TRAINED, save_small
from tests.support.small import random_images, small_backbone, small_kind

TOLERANCE = 1e-4
TEMPLATE = "a {}."
PLAIN = functools.partial(shaped_backbone, 2, 32)  # the exporter's time goes with the number of layers
QUICK_GELU = functools.partial(shaped_backbone, 2, 32, quick_gelu=True)
UNEVEN = functools.partial(small_backbone, 3, 2)


def make_predictor(backbone: Backbone, kind: str, **settings) -> Predictor:
    model = AdaptedCLIP(backbone, small_kind(backbone, kind, len(TRAINED), **settings), TRAINED, TEMPLATE)
    card = {"class_names": TRAINED, "template": TEMPLATE, "sha256": "of the adapter", "backbone": {"sha256": "its own"}}
    return Predictor(model, card)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Predictor:
    folder = tmp_path_factory.mktemp("adapter")
    save_small(folder)
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """The folder of an export, and what it returned."""
    folder = tmp_path_factory.mktemp("export")
    return folder, export_onnx(tiny, folder)


@pytest.fixture(scope="module")
def shallow() -> Predictor:
    return make_predictor(PLAIN(), "mmrl")


@pytest.fixture(scope="module")
def written(shallow, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shallow")
    return folder, export_onnx(shallow, folder)


def run_onnx(folder, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["logits", "probabilities", "image_features"], {"images": images.numpy()})


def relative(found: np.ndarray, expected: torch.Tensor) -> float:
    assert found.shape == tuple(expected.shape)
    return float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("kind", "settings", "backbone", "names", "columns"),
    [
        ("mmrl", {"insertion_depth": 1}, PLAIN, TRAINED, [0, 1, 2]),
        ("mmrl + probe", {"insertion_depth": 2}, QUICK_GELU, ["six", "two"], [2, 0]),
        ("mmrlpp", {"insertion_depth": 1, "beta": 0.6}, PLAIN, ["cat", "two", "dog", "four"], [-1, 0, -1, 1]),
        ("mmrlpp", {"insertion_depth": 2, "beta": 0.6}, QUICK_GELU, ["cat", "dog"], [-1, -1]),
        ("mmrlpp + probe", {"insertion_depth": 2, "beta": 1.0}, UNEVEN, ["two", "cat", "two"], [0, -1, 0]),
        ("mmrlpp", {"insertion_depth": 2, "beta": 0.6, "n_tokens": 1}, PLAIN, ["two"], [0]),
        ("tip_adapter", {}, PLAIN, ["cat", "four"], [-1, 1]),
    ],
)
@torch.no_grad()
def test_a_file_computes_what_the_model_does_at_any_batch_size(tmp_path, kind, settings, backbone, names, columns):
    backbone = backbone()
    card = export_onnx(make_predictor(backbone, kind, **settings), tmp_path, names)
    adapter = small_kind(backbone, kind, len(TRAINED), **settings)
    model = AdaptedCLIP(backbone, adapter, names, TEMPLATE)
    for batch in (1, 2, 7):
        images = random_images(batch, seed=batch)
        output = model(images)
        logits = joint_logits(output, torch.tensor(columns), adapter.weights)
        expected = (logits, logits.softmax(-1), output.image_features)
        for found, wanted in zip(run_onnx(tmp_path, images), expected, strict=True):
            assert relative(found, wanted) < TOLERANCE
    assert card["class_names"] == names and "column i belongs to class_names[i]" in card["columns"]
    assert 0 < card["largest_relative_difference"] < TOLERANCE


def test_a_program_that_follows_model_json_gets_the_predictors_probabilities(tiny, exported):
    folder, _ = exported
    card = json.loads((folder / "model.json").read_text())
    image = ODD["turned.jpg"](Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50).convert("RGB"))
    _, probabilities, _ = run_onnx(folder, torch.from_numpy(follow(card, image)))
    expected = tiny.predict([image])[0].probabilities
    assert list(expected) == card["class_names"]
    assert probabilities[0] == pytest.approx(list(expected.values()), rel=1e-4)


def test_model_json_says_what_the_file_is(tiny, exported):
    folder, card = exported
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.onnx"]
    assert json.loads((folder / "model.json").read_text()) == {"schema_version": 1, **card}
    assert card["files"] == {"model.onnx": sha256_file(folder / "model.onnx")}
    assert card["adapter"] == {"sha256": tiny.card["sha256"]}
    assert card["backbone"] == {key: tiny.card["backbone"][key] for key in ("name", "sha256")}
    assert (card["class_names"], card["template"], card["logit_scale"]) == (TRAINED, TEMPLATE, 100)
    assert (card["image_size"], len(card["mean"]), len(card["std"])) == (32, 3, 3)
    assert (card["decoding"], card["resizing"]["mode"]) == (DECODING, "shortest")
    assert any("bicubic" in step and "32" in step for step in card["preprocessing"])


def test_the_graph_has_the_promised_names_and_a_batch_of_any_size(exported):
    folder, card = exported
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", card["opset"])]
    assert card["opset"] >= 17
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "images": ["batch", 3, 32, 32], "logits": ["batch", 3], "probabilities": ["batch", 3],
        "image_features": ["batch", 128],
    }  # fmt: skip


def test_a_file_holds_the_image_tower_alone_and_nothing_of_the_machine_that_wrote_it(tiny, exported):
    content = (exported[0] / "model.onnx").read_bytes()
    visual = sum(tensor.numel() * 4 for tensor in tiny.model.backbone.visual.parameters())
    assert visual < len(content) < 1.2 * visual
    assert not [mark for mark in (b"mmrl_core", b".py", b"site-packages") if mark in content]


def test_exporting_again_is_silent_and_gives_the_same_bytes(shallow, written, tmp_path, capfd, caplog, recwarn):
    steps = []
    again = export_onnx(shallow, tmp_path, TRAINED, lambda done, note: steps.append((done, note)))
    assert again == written[1]
    assert steps == [(0, "tracing"), (1, "writing"), (2, "comparing")]
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert not recwarn.list


def test_weights_too_large_for_one_file_lie_beside_it(shallow, written, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 100_000)
    files = export_onnx(shallow, tmp_path)["files"]
    assert files == {name: sha256_file(tmp_path / name) for name in ("model.onnx", "model.onnx.data")}
    assert (tmp_path / "model.onnx").stat().st_size < 100_000
    images = random_images(2)
    assert all(map(np.array_equal, run_onnx(tmp_path, images), run_onnx(written[0], images)))


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_file_that_computes_something_else_is_refused(tiny, exported, tmp_path, factor):
    scorer = Scorer(tiny.model, tiny.model.text_features, tiny.columns(TRAINED))
    assert compare(exported[0] / "model.onnx", scorer) == exported[1]["largest_relative_difference"]
    model = onnx.load(exported[0] / "model.onnx")
    classes = next(one for one in model.graph.initializer if list(one.dims) == [128, 3])  # w, transposed
    classes.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(classes) * np.float32(factor), classes.name))
    onnx.save(model, tmp_path / "altered.onnx")
    with pytest.raises(UserError, match=r"logits of altered\.onnx at batch size 1 differ from PyTorch's"):
        compare(tmp_path / "altered.onnx", scorer)


@pytest.mark.parametrize(
    ("names", "message"), [(["cat", "cat"], "make the same prompt"), ([], "list of class names is empty")]
)
def test_a_class_list_that_cannot_be_scored_is_refused_before_anything_is_written(tiny, tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        export_onnx(tiny, tmp_path / "out", names)
    assert not (tmp_path / "out").exists()


def test_onnxruntime_writes_nothing_into_the_home_folder(tmp_path):
    told_apart = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    here = told_apart | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    code = "import mmrl_core.export, mmrl_core.light.session, mmrl_core.bundle"
    subprocess.run([sys.executable, "-c", code], env=here, check=True)
    assert not list(tmp_path.rglob("*"))
