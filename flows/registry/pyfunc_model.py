"""The registered model as code (MLflow's models from code): no pickle, and nothing but a call to mmrl_core.

Needs MLflow and this package where it is loaded; the adapter's files come with the model.
"""

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class AdapterModel(PythonModel):
    """Column `image` (encoded bytes) in; `label`, `probability` and `probabilities` (name -> the sum over its
    classes) out."""

    def load_context(self, context: PythonModelContext) -> None:
        from mmrl_core.predict import Predictor

        self._predictor = Predictor.load(context.artifacts["adapter"])
        self._predictor.check_answers()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        predictions = self._predictor.predict(list(model_input["image"]))
        rows = [prediction._asdict() for prediction in predictions]
        return pd.DataFrame(rows, columns=["label", "probability", "probabilities"])


mlflow.models.set_model(AdapterModel())
