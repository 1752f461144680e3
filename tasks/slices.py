"""Accuracy by the values of columns that came with the data: who is served worse?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tasks import metrics
from tasks.metrics import Bootstrap, Interval, Ints
from tasks.records import COLUMN

VALUES = 50  # of a column, at most; of more numbers, their quarters
LEAST = 20  # test examples of a slice that is judged


def judge(
    labels: Ints, predicted: Ints, examples: pd.DataFrame, bootstrap: Bootstrap
) -> dict[str, Any]:
    """`slices`: `column`, `value`, `examples`, `accuracy` (Wilson interval, n counts groups) and
    whether it is `worse` than the rest beyond that; `worst`: the lowest accuracy among them."""
    right = labels == predicted
    found: list[dict[str, Any]] = []
    for name in [str(name) for name in examples.columns if str(name).startswith(COLUMN)]:
        values = _values(examples[name])
        for value in sorted(values.unique(), key=str):
            inside = (values == value).to_numpy()
            if inside.sum() < LEAST:
                continue
            groups = len(np.unique(bootstrap.groups[inside]))
            accuracy = metrics.wilson(float(right[inside].mean()), groups, bootstrap.confidence)
            found.append(
                {
                    "column": name.removeprefix(COLUMN),
                    "value": str(value),
                    "examples": int(inside.sum()),
                    "accuracy": accuracy,
                    "worse": _worse(accuracy, right[~inside]),
                }
            )
    return {
        "slices": found,
        "worst": min(found, key=lambda x: x["accuracy"].value) if found else None,
    }


def _worse(accuracy: Interval, others: Any) -> bool:
    return bool(len(others)) and accuracy.high < float(others.mean())


def _values(column: pd.Series[Any]) -> pd.Series[Any]:
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > VALUES:
        column = pd.qcut(column, 4, duplicates="drop")
    column = column.astype("str").fillna("missing")
    common = column.value_counts().index[:VALUES]
    return column.where(column.isin(common), "others")
