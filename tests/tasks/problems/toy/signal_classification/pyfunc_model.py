from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel
from tasks.problems.signal_classification.predictor import Predictor


class SignalClassifier(PythonModel):
    def load_context(self, context: Any) -> None:
        self.predictor = Predictor(context.artifacts["model"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        return self.predictor.predict(model_input.iloc[:, 0].tolist())


mlflow.models.set_model(SignalClassifier())
