"""The MLflow model, as code: MLflow runs this file when the model is loaded; nothing is pickled.

>>> model = mlflow.pyfunc.load_model("models:/reviews@champion")  # doctest: +SKIP
>>> model.predict(["a film to remember"])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from tasks.problems.text_classification.predictor import Predictor


class TextClassifier(PythonModel):
    """Texts → label, calibrated probabilities."""

    def load_context(self, context: Any) -> None:
        self.predictor = Predictor(context.artifacts["model"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """`model_input`: a column `text`, or the only one; MLflow makes one of a plain list."""
        column = model_input["text"] if "text" in model_input else model_input.iloc[:, 0]
        return self.predictor.predict(column.tolist())


mlflow.models.set_model(TextClassifier())
