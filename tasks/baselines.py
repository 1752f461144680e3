"""What a model must beat to be worth its training: always the same answer, and a linear probe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.metrics import Ints

Features = npt.NDArray[np.float32]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of the probe: the most regularised first
WITHOUT_VALIDATION = 1e-2
ITERATIONS, TOLERANCE = 100, 3e-3  # more changes no answer, only the last digits of the weights


@dataclass(frozen=True)
class Baseline:
    """The answers of a baseline on the test set."""

    name: str  # in metrics.json
    title: str  # in a sentence
    predicted: Ints  # [n]
    details: dict[str, float | str]


def majority(labels: Ints, classes: list[str], examples: int) -> Baseline:
    """Always the commonest class of the training `labels`, the first of several."""
    target = int(np.bincount(labels, minlength=len(classes)).argmax())
    answer = np.full(examples, target, np.int64)
    return Baseline("majority", f"Always answering “{classes[target]}”", answer, {})


def linear_probe(
    train: tuple[Features, Ints], validation: tuple[Features, Ints], test: Features
) -> Baseline:
    """Logistic regression on standardised frozen features [n, d], C chosen on validation.

    Each C starts from the weights of the one before; weaker regularisation is not tried once it
    has made validation worse.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train[0])
    features, (held_out, targets) = scaler.transform(train[0]), validation
    probe = LogisticRegression(warm_start=True, max_iter=ITERATIONS, tol=TOLERANCE)
    best, chosen, predicted = -1.0, 0.0, np.zeros(0, np.int64)
    for strength in STRENGTHS if len(targets) else (WITHOUT_VALIDATION,):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stopped before it converged, as it may
            probe.set_params(C=strength).fit(features, train[1])
        right = float(probe.score(scaler.transform(held_out), targets)) if len(targets) else 0.0
        if right < best:
            break
        if right > best:
            best, chosen = right, strength
            predicted = probe.predict(scaler.transform(test)).astype(np.int64)
    details: dict[str, float | str] = {"C": chosen, "features": features.shape[1]}
    return Baseline("linear_probe", "A linear probe on the frozen backbone", predicted, details)
