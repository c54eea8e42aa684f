"""A registered version's files: the adapter as an MLflow model without pickle, and the settings that it came from.

Written when it is registered, checked whenever they come back from the artifact store.
"""

import importlib.metadata
import shutil
from pathlib import Path

import yaml

from flows.settings.params import Params
from mmrl_core.errors import Damaged, UserError
from mmrl_core.method.adapter_card import CARD, read_verified_card

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
        artifacts={"adapter": adapter.absolute().as_uri()},  # a path would be taken for a URI, its % for an escape
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema(outputs)),
        input_example=pd.DataFrame({"image": [_example_image()]}),
        pip_requirements=[_requirement(PACKAGE), _requirement("mlflow")],
    )
    (path / SETTINGS).mkdir()
    settings = params.model_dump(mode="json", exclude=OF_THE_PLACE)
    (path / SETTINGS / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if LOCK.is_file():
        shutil.copy(LOCK, path / SETTINGS)


def check_model(model: Path, sha256: str | None, what: str) -> Path:
    """The adapter's folder in the files of a version, `what` in messages; without MLflow and PyTorch.

    Raises Damaged unless it holds the adapter with that sha256, UserError for what `mmrl register` did not write.
    """
    altered = Damaged(f"{what} does not hold the adapter that was registered; it was altered, register it again")
    adapter = model / _adapter_path(model, what)
    if not adapter.resolve().is_relative_to(model.resolve()):
        raise altered
    if not (adapter / CARD).is_file():
        raise altered
    try:
        card = read_verified_card(adapter)
    except Damaged:  # and not what cannot be read here, or is of a later release
        raise altered from None
    if card["sha256"] != sha256:
        raise altered
    return adapter


def _adapter_path(model: Path, what: str) -> str:
    """Where MLmodel says that the adapter is, relative to it."""
    try:
        flavors = yaml.safe_load((model / "MLmodel").read_text())["flavors"]
        artifacts = flavors["python_function"].get("artifacts", {})
        if "adapter" not in artifacts:
            raise UserError(f"{what} is not a model that `mmrl register` wrote; name another")
        path = str(artifacts["adapter"]["path"])
        (model / path).resolve()  # raises ValueError for what no path may hold
        return path
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        raise Damaged(f"{what} has no MLmodel that can be read; it was altered, register it again") from None


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
