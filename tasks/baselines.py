"""What a model must beat to be worth its training: always the same answer, and a linear probe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks import labelling, ridge
from tasks.labelling import Ints, Labelling, Labels

Features = npt.NDArray[np.float32]

_ACCURACY = re.compile(r"baseline\.(.+)\.accuracy")
_WORDS = {
    "majority": "always the commonest class",
    "linear_probe": "linear head on frozen features",
}


@dataclass(frozen=True)
class Baseline:
    """The answers of a baseline on the test set."""

    name: str  # in metrics.json
    title: str  # in a sentence
    predicted: Labels  # of each, as in `tasks.labelling`
    details: dict[str, Any]  # JSON-ready: how it was made, and what its problem shows of it


def accuracies(metrics: Mapping[str, float]) -> dict[str, float]:
    """The accuracy of each baseline of `metrics.json` by name, those of all problems first.

    Linear probes on candidates that were not chosen are left to the report.
    """
    found = {m[1]: metrics[m[0]] for m in map(_ACCURACY.fullmatch, metrics) if m}
    own = [name for name in found if not name.startswith("linear_probe_")]
    order = [name for name in _WORDS if name in found]
    return {name: found[name] for name in dict.fromkeys([*order, *own])}


def called(name: str) -> str:
    """A baseline's name in words."""
    return _WORDS.get(name, name.replace("_", " "))


def majority(targets: Ints, known: Labelling, examples: int) -> Baseline:
    """Always the commonest class, or combination of classes, of the training `targets`; of equals
    the first."""
    target = int(np.bincount(targets).argmax())
    answer = known.truth(np.full(examples, target, np.int64))
    return Baseline("majority", f"Always answering “{known.names[target]}”", answer, {})


def linear_probe(
    train: tuple[Features, Labels], test: Features, classes: int, rows: Ints | None = None
) -> Baseline:
    """A ridge head on frozen features [n, d], its strength by exact leave-one-out.

    The training targets are those of `rows` of the features, or of all. On such features as good
    as logistic regression, in a fraction of its time.
    """
    features, targets = train
    solution = ridge.fit(features, targets, classes, rows)
    scores = test @ solution.weight.T + solution.bias
    predicted = labelling.answers(scores, targets.ndim == 2)
    details = {"features": features.shape[1]}
    return Baseline("linear_probe", "A linear probe on the frozen backbone", predicted, details)
