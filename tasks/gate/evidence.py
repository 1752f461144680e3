"""What a model brings before the gate, and how two models' answers are laid side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tasks.errors import DataError
from tasks.metrics import Ints


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
    # `probability` (of `predicted`) and the data's own columns, `column.NAME`.
    predictions: pd.DataFrame
    # The same of all examples, each by a model that was not trained on it, and its `fold`.
    folds: pd.DataFrame | None = None
    retention_drop: float | None = None
    data: str | None = None  # digest of the data that it was trained on
    certificate: dict[str, Any] | None = None  # `tasks.inspect.leaks`
    loaded: Loaded | None = None


@dataclass(frozen=True)
class Shared:
    """The examples that both models have judged, in the challenger's order."""

    examples: pd.DataFrame  # of the challenger
    champion: Any  # [n] what the champion says
    groups: Ints  # [n]
    left_out: int  # that only one of them has judged

    @property
    def steps(self) -> Ints:
        """[n]: 1 where the challenger alone is right, -1 where the champion alone is, else 0."""
        labels = self.examples["label"].to_numpy()
        right = self.examples["predicted"].to_numpy() == labels
        return right.astype(np.int64) - (self.champion == labels)


def shared(challenger: pd.DataFrame, champion: pd.DataFrame | None) -> Shared:
    """Lay the answers side by side; without a champion, beside the commonest class.

    Raises `DataError` when no example is shared or the labels are not the same.
    """
    own = _distinct(challenger)
    if champion is None:
        labels = own["label"]
        answers, left_out = np.full(len(own), labels.mode().iloc[0], dtype=object), 0
    else:
        other = _distinct(champion).set_index("id")
        left_out = 0
        if not other.index.equals(pd.Index(own["id"])):
            both = own["id"].isin(other.index).to_numpy()
            left_out = len(own) + len(other) - 2 * int(both.sum())
            own = own[both]
            other = other.loc[own["id"]]
        relabelled = int((own["label"].to_numpy() != other["label"].to_numpy()).sum())
        if relabelled:
            raise DataError(
                f"the two models were judged by different labels ({relabelled} of {len(own)} "
                "shared examples); evaluate both on the same test set"
            )
        answers = other["predicted"].to_numpy()
    if own.empty:
        raise DataError(
            "the two models were judged on different examples; evaluate both on the same test set"
        )
    return Shared(own, answers, pd.factorize(own["group"])[0], left_out)


def _distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """Content that a given test split holds twice, perhaps under two labels, is no evidence."""
    return frame[~frame["id"].duplicated(keep=False)]
