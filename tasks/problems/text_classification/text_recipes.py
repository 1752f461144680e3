"""What of the recipes is another for texts: rates of encoders, and no mixing of sentences.

How they were found stands in docs/decisions/0034-recipes-for-texts.md.
"""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {
    "augment.views": 1,
    "freeze.learning_rate_fraction": 1.0,
    "train.mix": "none",
}
_SHORT: dict[str, Any] = {
    **_TEXT,
    "freeze.thaw_fraction": 0.7,  # four of six layers
    "freeze.phase_epochs": 1,  # of the few that there are
    "train.learning_rate": 0.0002,
    "train.dropout": 0.0,
    "train.ema": 0.0,  # a mean over so few steps would lag behind
}
RECIPES: dict[str, dict[str, Any]] = {
    "standard": {**_SHORT, "train.epochs": 2},
    "small_data": {**_SHORT, "train.epochs": 10},
    "contrastive": {**_SHORT, "train.epochs": 10},
    "few_shot": {**_SHORT, "train.epochs": 2},
    "long": {
        **_TEXT,
        "augment.policy": "token_dropout",
        "augment.views": 4,
        "train.epochs": 8,
        "train.learning_rate": 0.0001,
        "train.dropout": None,
    },
}
