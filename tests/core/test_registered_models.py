"""A champion that the registry got before the modules moved into rooms: its own code still finds what it calls."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.workspace import run

REGISTERED = Path(__file__).parents[1] / "golden" / "registered_before_the_move"
ADAPTER = Path("artifacts", "seed1")
PREDICT = f"""
import json, sys
from pathlib import Path
import mlflow.pyfunc
import pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
from mmrl_core.data.embedded.digits import open_source
from mmrl_core.predict import Predictor
source = open_source()
images = [source.read(item) for path in sys.argv[2:] for item in source.test if item.path == path]
by_mlflow = model.predict(pd.DataFrame({{"image": images}})).to_dict("records")
predictions = Predictor.load(Path(sys.argv[1]) / {str(ADAPTER)!r}).predict(images)
here = [{{name: getattr(prediction, name) for name in by_mlflow[0]}} for prediction in predictions]
print(json.dumps([by_mlflow, here]))
"""


@pytest.fixture(scope="module")
def recorded() -> list[dict]:
    """What the build that registered the model predicted: path, label and probabilities of an image of every digit."""
    return json.loads((REGISTERED / "predictions.json").read_text())


@pytest.fixture(scope="module")
def predicted(recorded, tmp_path_factory) -> tuple[list[dict], list[dict]]:
    """The same images' predictions by MLflow and by Predictor, in a process where nothing but the model's own code has
    imported the library when MLflow loads it."""
    images = [prediction["image"] for prediction in recorded]
    child = run(tmp_path_factory.mktemp("cwd"), sys.executable, "-c", PREDICT, str(REGISTERED / "model"), *images)
    by_mlflow, here = json.loads(child.stdout)
    return by_mlflow, here


def test_it_predicts_what_it_predicted_when_it_was_registered(recorded, predicted):
    by_mlflow, _ = predicted
    assert [now["label"] for now in by_mlflow] == [then["label"] for then in recorded]
    for now, then in zip(by_mlflow, recorded, strict=True):
        assert now["probability"] == pytest.approx(then["probability"], rel=0, abs=1e-5)
        assert now["probabilities"] == pytest.approx(then["probabilities"], rel=0, abs=1e-5)


def test_mlflow_and_predictor_give_the_same_bits(predicted):
    by_mlflow, here = predicted
    assert by_mlflow == here
