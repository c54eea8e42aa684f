"""The registered model as MLflow hands it what a caller gives: bytes of images in any form that pandas and Arrow have
for them, and nothing else."""

import base64
import io
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow
import pytest
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image

from flows.registry.model_files import save_model
from flows.settings.params import load_params

ADAPTER = Path(__file__).parents[2] / "golden/registered_before_the_move/model/artifacts/seed1"
PARAMS = Path(__file__).parents[3] / "params.yaml"


def _encoded() -> bytes:
    encoded = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(encoded, format="PNG")
    return encoded.getvalue()


PNG = _encoded()
IN_BASE64 = base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """As `mmrl register` saves it and MLflow loads it."""
    path = tmp_path_factory.mktemp("registered") / "model"
    save_model(path, ADAPTER, load_params(PARAMS))
    return mlflow.pyfunc.load_model(str(path))


@pytest.fixture(scope="module")
def expected(model) -> dict:
    return model.predict(pd.DataFrame({"image": [PNG]})).to_dict("records")[0]


@pytest.fixture
def file(tmp_path) -> str:
    """An image on the disk of the machine where the model is."""
    (tmp_path / "private.png").write_bytes(PNG)
    return str(tmp_path / "private.png")


@pytest.mark.parametrize(
    "image",
    [
        bytearray(PNG),
        memoryview(PNG),
        np.bytes_(PNG),
        pyarrow.scalar(PNG),
        pyarrow.scalar(PNG, pyarrow.large_binary()),
        pyarrow.scalar(PNG, pyarrow.binary_view()),
        pyarrow.scalar(PNG, pyarrow.binary(len(PNG))),
    ],
    ids=lambda image: str(getattr(image, "type", type(image).__name__)),
)
def test_bytes_in_every_form_are_the_image_that_they_encode(model, expected, image):
    assert model.predict(pd.DataFrame({"image": [image]})).to_dict("records") == [expected]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()], ids=str)
def test_a_column_of_arrows_binary_is_taken_by_the_model_itself(model, expected, kind):
    """MLflow's check of the signature lets pandas' own columns of bytes pass alone; without it any of Arrow's do."""
    column = pd.array([PNG], dtype=pd.ArrowDtype(kind))
    ours = model.unwrap_python_model()
    assert ours.predict(None, pd.DataFrame({"image": column})).to_dict("records") == [expected]


def test_text_is_refused_and_not_opened_as_a_file(model, file):
    for image in (file, np.str_(file), pyarrow.scalar(file)):
        with pytest.raises(MlflowException, match="image number 1 is text, not bytes; give the encoded") as refused:
            model.predict(pd.DataFrame({"image": [PNG, image]}))
        assert "\n" not in refused.value.message


@pytest.mark.parametrize("image", [None, 7, [PNG], Path("private.png"), np.zeros(3, np.uint8)], ids=repr)
def test_what_is_neither_bytes_nor_text_is_refused_by_its_type(model, image):
    table = pd.DataFrame({"image": pd.Series([PNG, image], dtype=object)})
    with pytest.raises(MlflowException, match=f"image number 1 is {type(image).__name__}, not bytes"):
        model.predict(table)


def test_bytes_that_are_no_image_are_refused_by_their_number(model):
    with pytest.raises(MlflowException, match="number 1 is not an image of a known format"):
        model.predict(pd.DataFrame({"image": [PNG, b"\x89PNG"]}))


def test_the_scoring_server_takes_base64_where_mlflow_decodes_it(model, expected):
    client = TestClient(scoring_server.init(model))
    for body in (
        {"dataframe_split": {"columns": ["image"], "data": [[IN_BASE64]]}},
        {"dataframe_records": [{"image": IN_BASE64}]},
    ):
        assert client.post("/invocations", json=body).json()["predictions"] == [expected]


def test_the_scoring_server_says_where_base64_is_decoded(model, file):
    client = TestClient(scoring_server.init(model))
    answers = [
        client.post("/invocations", json={"inputs": {"image": [IN_BASE64]}}),
        client.post("/invocations", json={"instances": [{"image": IN_BASE64}]}),
        client.post("/invocations", json={"inputs": [{"image": file}]}),
        client.post("/invocations", content=f"image\n{file}\n", headers={"content-type": "text/csv"}),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert "MLflow reads JSON's base64 in dataframe_split and dataframe_records alone" in answer.json()["message"]
