"""The registered model as code (MLflow's models from code): no pickle, and nothing but a call to mmrl_core.

Needs MLflow and this package where it is loaded; the adapter's files come with the model.
"""

from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

IN_JSON = "; MLflow reads JSON's base64 in dataframe_split and dataframe_records alone"


class AdapterModel(PythonModel):
    """Column `image` (encoded bytes) in; `label`, `probability` and `probabilities` (name -> the sum over its
    classes) out.

    Raises MlflowException for what is no bytes, and for bytes that are no image.
    """

    def load_context(self, context: PythonModelContext) -> None:
        from mmrl_core.predict import Predictor

        self._predictor = Predictor.load(context.artifacts["adapter"])
        self._predictor.check_answers()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        from mmrl_core.errors import UserError

        images = [_encoded(image, row) for row, image in enumerate(model_input["image"])]
        try:
            predictions = self._predictor.predict(images)
        except UserError as error:
            hint = IN_JSON if any(map(bytes.isascii, images)) else ""  # text that MLflow made bytes of
            raise MlflowException.invalid_parameter_value(f"{error}{hint}") from None
        rows = [prediction._asdict() for prediction in predictions]
        return pd.DataFrame(rows, columns=["label", "probability", "probabilities"])


def _encoded(image: Any, row: int) -> bytes:
    """The bytes of a row's image, also as Arrow holds them. Text is refused, and not a path: whoever asks a server
    would have it open its own files."""
    value = image.as_py() if hasattr(image, "as_py") else image
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    kind, hint = ("text", IN_JSON) if isinstance(value, str) else (type(value).__name__, "")
    raise MlflowException.invalid_parameter_value(
        f"image number {row} is {kind}, not bytes; give the encoded image file{hint}"
    )


mlflow.models.set_model(AdapterModel())
