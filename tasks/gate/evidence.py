"""What a model brings before the gate, and how two models' answers are laid side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.errors import DataError
from tasks.metrics import Ints

Flags = npt.NDArray[np.bool_]

# Column of a challenger's predictions: what is in no test set that the champion was judged on.
NEWEST = "newest"


@dataclass(frozen=True)
class Loaded:
    """What a fresh process made of the packaged model (`tasks.gate.fresh`)."""

    error: str | None  # why it could not; else None
    digest: str = ""  # of the model, from its files
    megabytes: float = 0.0  # of its files
    milliseconds: float = 0.0  # of one example, median
    labels: dict[str, str] | None = None  # example id → label
    probabilities: dict[str, float] | None = None  # example id → that of its label


@dataclass(frozen=True)
class Evidence:
    """One model before the gate. A champion needs the first three fields alone."""

    name: str  # for people
    digest: str  # of the model that was judged
    # A row a test example: `id`, `group`, `label`, `predicted`; of a challenger also
    # `probability` (of `predicted`), the data's own columns, `column.NAME`, and `NEWEST`.
    predictions: pd.DataFrame
    # The same of all examples, each by a model that was not trained on it, and its `fold`.
    folds: pd.DataFrame | None = None
    retention_drop: float | None = None
    data: str | None = None  # digest of the data that it was trained on
    certificate: dict[str, Any] | None = None  # `tasks.inspect.leaks`
    loaded: Loaded | None = None
    sampled: pd.DataFrame | None = None  # of `predictions` as they were: what `loaded` was asked
    several: bool = False  # whether an example may have several labels


@dataclass(frozen=True)
class Shared:
    """The examples that both models have judged, in the challenger's order."""

    examples: pd.DataFrame  # of the challenger
    steps: Ints  # [n]: 1 where it alone is right, -1 where the champion alone is, else 0
    groups: Ints  # [n]
    left_out: int  # examples that only one of them has judged

    @property
    def newest(self) -> Flags | None:
        """[n], which examples have come since the champion; None: none has, or nobody knows."""
        if NEWEST not in self.examples or not self.examples[NEWEST].any():
            return None
        return self.examples[NEWEST].to_numpy(np.bool_)


def shared(challenger: pd.DataFrame, champion: pd.DataFrame | None) -> Shared:
    """Lay the answers side by side; without a champion, beside the commonest class.

    Raises `DataError` when no example is shared or the labels are not the same.
    """
    own, left_out = _distinct(challenger), 0
    if champion is None:
        other = own.assign(predicted=own["label"].mode().iloc[0])
    else:
        other = _distinct(champion)
        if not np.array_equal(own["id"], other["id"]):
            both = own["id"].isin(other["id"])
            left_out = len(own) + len(other) - 2 * int(both.sum())
            own = own[both]
            other = other.set_index("id").loc[own["id"]]
    if own.empty:
        raise DataError(
            "the two models were judged on different examples; evaluate both on the same test set"
        )
    labels = own["label"].to_numpy()
    relabelled = int((labels != other["label"].to_numpy()).sum())
    if relabelled:
        raise DataError(
            f"the two models were judged by different labels ({relabelled} of {len(own)} "
            "shared examples); evaluate both on the same test set"
        )
    ours, theirs = (frame["predicted"].to_numpy() == labels for frame in (own, other))
    steps = ours.astype(np.int64) - theirs
    return Shared(own, steps, pd.factorize(own["group"])[0], left_out)


def agreeing(challenger: pd.DataFrame, champion: pd.DataFrame) -> pd.DataFrame:
    """The challenger's rows of examples that the champion has too, under the same label."""
    own, other = _distinct(challenger), _distinct(champion)
    return own[own["id"].map(other.set_index("id")["label"]) == own["label"]]


def _distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """Content that a given test split holds twice, perhaps under two labels, is no evidence."""
    return frame[~frame["id"].duplicated(keep=False)]
