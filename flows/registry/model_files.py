"""A registered version's files: the adapter as an MLflow model without pickle, and the settings that it came from."""

import importlib.metadata
import shutil
from pathlib import Path

import yaml

from flows.settings.params import Params

PACKAGE = "mmrl-ops"
MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
SETTINGS = "settings"  # folder of params.yaml and dvc.lock beside the model
LOCK = Path("dvc.lock")
OF_THE_PLACE = {"cluster", "tracking", "features"}  # sections that say where things ran; an address may hold a password


def save_model(path: Path, adapter: Path, params: Params) -> None:
    """The MLflow model as a folder, with the settings and the dvc.lock that it came from.

    Not `log_model`, which loads the model (and so torch) to try its input example.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    outputs = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    mlflow.pyfunc.save_model(
        path,
        python_model=MODEL_CODE,
        artifacts={"adapter": str(adapter.absolute())},
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema(outputs)),
        input_example=pd.DataFrame({"image": [_example_image()]}),
        pip_requirements=[_requirement(PACKAGE), _requirement("mlflow")],
    )
    (path / SETTINGS).mkdir()
    settings = params.model_dump(mode="json", exclude=OF_THE_PLACE)
    (path / SETTINGS / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if LOCK.is_file():
        shutil.copy(LOCK, path / SETTINGS)


def _requirement(package: str) -> str:
    """`package==version`; without the version when the package runs from a folder and was never installed."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _example_image() -> bytes:
    import io

    from PIL import Image

    encoded = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(encoded, format="PNG")
    return encoded.getvalue()
