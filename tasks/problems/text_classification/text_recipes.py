"""What of the recipes is another for texts: rates of encoders, and no mixing of sentences."""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {
    "augment.policy": "none",
    "augment.views": 1,
    "train.mix": "none",
    "train.learning_rate": 0.0001,
    "freeze.learning_rate_fraction": 1.0,
    "train.epochs": 4,
}
RECIPES: dict[str, dict[str, Any]] = {
    "standard": _TEXT,
    "small_data": {**_TEXT, "train.epochs": 8},
    "long": {**_TEXT, "augment.policy": "token_dropout", "augment.views": 4, "train.epochs": 8},
}
