"""The registered model as code (MLflow's models from code): no pickle, and nothing but a call to mmrl_core.

Needs MLflow and this package where it is loaded; the adapter's files come with the model.
"""

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel


class AdapterModel(PythonModel):
    """Column `image` (encoded bytes) in; `label`, `probability` and `probabilities` (class name -> probability) out."""

    def load_context(self, context):
        from mmrl_core.predict import Predictor

        self._predictor = Predictor.load(context.artifacts["adapter"])

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        found = self._predictor.predict(list(model_input["image"]))
        return pd.DataFrame([one._asdict() for one in found], columns=["label", "probability", "probabilities"])


mlflow.models.set_model(AdapterModel())
