"""The MLflow model, as code: MLflow runs this file when the model is loaded; nothing is pickled.

>>> model = mlflow.pyfunc.load_model("models:/fashion-mnist@champion")  # doctest: +SKIP
>>> model.predict(["boots.jpg"])  # doctest: +SKIP
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from tasks.problems.image_classification.predictor import Image, Predictor

SHORTEST_BASE64 = 64  # characters; the smallest picture file has more


class ImageClassifier(PythonModel):
    """Images → label, calibrated probabilities."""

    def load_context(self, context: Any) -> None:
        self.predictor = Predictor(context.artifacts["model"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """`model_input`: a column `image`, or the only one; MLflow makes one of a plain list.

        Each image is a path, the bytes of a file, those in base64 (also as a data URL), or pixels.
        """
        named = "image" in model_input
        column = model_input["image"] if named else model_input.iloc[:, 0]
        return self.predictor.predict([_image(value) for value in column])


def _image(value: Any) -> Image:
    """Text is a path when there is such a file, else base64 when it can be that."""
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        return value
    if value.startswith("data:"):
        return base64.b64decode(value.partition(",")[2])
    if len(value) >= SHORTEST_BASE64 and not _is_file(value):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    return value


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a path can be
        return False


mlflow.models.set_model(ImageClassifier())
