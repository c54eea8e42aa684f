"""The exported model in a process that can import neither this project nor torch."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from mmrl_core.predict import Predictor
from tests.examples.images import write_images
from tests.support.workspace import ROOT, run

PROGRAM = ROOT / "examples/onnx_plain/label.py"
BLOCKED = ("mmrl_core", "flows", "torch", "torchvision", "open_clip")
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys({blocked}))  # an import of one of these raises ImportError
sys.argv = [{program!r}, *sys.argv[1:]]
runpy.run_path({program!r}, run_name="__main__")
"""


def label(folder, *paths, check=True):
    script = WITHOUT.format(blocked=BLOCKED, program=str(PROGRAM))
    return run(folder, sys.executable, "-c", script, str(folder), *map(str, paths), check=check)


def test_a_program_with_onnxruntime_numpy_and_pillow_alone_gives_the_labels_of_predict(adapter, exported, tmp_path):
    paths = write_images(tmp_path)
    rows = [json.loads(line) for line in label(exported, *paths).stdout.splitlines()]
    expected = Predictor.load(adapter).predict([path.read_bytes() for path in paths])
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [row["label"] for row in rows] == [prediction.label for prediction in expected]
    for row, prediction in zip(rows, expected, strict=True):
        assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-4)
    assert any(prediction.probability < 0.95 for prediction in expected)  # else pixels hardly counted


def test_it_refuses_what_it_would_read_otherwise(exported, tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    done = label(exported, tmp_path / "deep.png", check=False)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path / 'deep.png'} has more than 8 bits a pixel; save it with 8\n"
