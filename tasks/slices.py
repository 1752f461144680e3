"""Accuracy by the values of columns that came with the data: who is served worse?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import labelling, metrics
from tasks.labelling import Labels
from tasks.metrics import Bootstrap
from tasks.records import COLUMN

VALUES = 50  # of a column, at most; of more numbers, their quarters
LEAST = 20  # test examples of a slice that is judged
FEWEST = 10  # groups on either side of a difference that is called no chance


def judge(
    labels: Labels, predicted: Labels, examples: pd.DataFrame, bootstrap: Bootstrap
) -> dict[str, Any]:
    """`slices`: `column`, `value`, `examples`, `accuracy` (Wilson interval, n counts groups) and
    whether it is `worse` than the rest beyond chance; `worst`: the one of lowest accuracy, which
    by chance alone is below that of all."""
    right = labelling.right(labels, predicted)
    found: list[dict[str, Any]] = []
    inside: list[npt.NDArray[np.bool_]] = []
    for name in [str(name) for name in examples.columns if str(name).startswith(COLUMN)]:
        column = values(examples[name])
        for value in sorted(column.unique(), key=str):
            here = (column == value).to_numpy()
            if here.sum() < LEAST:
                continue
            inside.append(here)
            groups = len(np.unique(bootstrap.groups[here]))
            accuracy = metrics.wilson(float(right[here].mean()), groups, bootstrap.confidence)
            found.append(
                {
                    "column": name.removeprefix(COLUMN),
                    "value": str(value),
                    "examples": int(here.sum()),
                    "accuracy": accuracy,
                }
            )
    for row, here in zip(found, inside, strict=True):
        row["worse"] = _worse(right, here, bootstrap, len(found))
    return {
        "slices": found,
        "worst": min(found, key=lambda x: x["accuracy"].value) if found else None,
    }


def _worse(
    right: npt.NDArray[np.bool_], here: npt.NDArray[np.bool_], bootstrap: Bootstrap, tested: int
) -> bool:
    """Whether the interval of the difference to all others is below 0, corrected for how many
    slices are tested (Bonferroni; the normal interval of the resampled difference)."""
    from scipy.stats import norm

    if min(len(np.unique(bootstrap.groups[side])) for side in (here, ~here)) < FEWEST:
        return False
    tallies = np.column_stack([right & here, here, right & ~here, ~here]).astype(np.float64)

    def difference(totals: Any) -> Any:
        return metrics.ratio(totals[..., 0], totals[..., 1]) - metrics.ratio(
            totals[..., 2], totals[..., 3]
        )

    value = float(difference(tallies.sum(0)))
    spread = float(np.std(difference(bootstrap.totals(tallies))))
    tail = (1 - bootstrap.confidence) / 2 / tested
    return value + float(norm.ppf(1 - tail)) * spread < 0


def values(column: pd.Series[Any]) -> pd.Series[Any]:
    """The slice of each example: its value, a quarter of the range, or `others`."""
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > VALUES:
        column = pd.qcut(column, 4, duplicates="drop")
    column = column.astype("str").fillna("missing")
    common = column.value_counts().index[:VALUES]
    return column.where(column.isin(common), "others")
