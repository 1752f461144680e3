"""What a model must beat to be worth its training: always the same answer, and a linear probe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.metrics import Ints

Features = npt.NDArray[np.float32]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of the probe, weakest first
ITERATIONS = 200


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
    train: tuple[Features, Ints],
    validation: tuple[Features, Ints],
    test: Features,
) -> Baseline:
    """Logistic regression on standardised frozen features [n, d], C chosen on validation.

    The weakest regularisation is not tried further once a weaker one has become worse. Without
    validation examples C is the middle one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = train
    best, best_share = None, -1.0
    for strength in STRENGTHS if len(validation[1]) else (1e-2,):
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS, tol=1e-3)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged: stopped early, which is no fault here
            probe.fit(features, labels)
        share = float(probe.score(*validation)) if len(validation[1]) else 0.0
        if share < best_share:
            break
        if share > best_share:
            best, best_share, chosen = probe, share, strength
    assert best is not None
    details: dict[str, float | str] = {"C": chosen, "features": features.shape[1]}
    predicted = best.predict(test).astype(np.int64)
    return Baseline("linear_probe", "A linear probe on the frozen backbone", predicted, details)
