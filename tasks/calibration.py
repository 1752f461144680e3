"""Whether a model's probabilities can be believed: calibration, and the temperature that mends it.

Calibration error, temperature and reliability diagram as in Guo et al. 2017, "On Calibration of
Modern Neural Networks".
"""

from __future__ import annotations

import numpy as np

from tasks import labelling
from tasks.labelling import Floats, Labels
from tasks.metrics import Bootstrap, Interval, ratio, wilson

BINS = 15
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
SMALLEST = 1e-12  # a probability of exactly 0 would make the log-likelihood infinite


def calibration_tallies(probabilities: Floats, labels: Labels) -> Floats:
    """What the calibration error and the log-likelihood are sums of: [n, 2 · BINS + 2].

    For each bin of the probability of the answer its confidence and its right answers, then the
    negative log-likelihood and 1.
    """
    rows, several = np.arange(len(labels)), labels.ndim == 2
    confidence = labelling.confidence(probabilities, several)
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    tallies = np.zeros((len(labels), 2 * BINS + 2))
    tallies[rows, place] = confidence
    said = labelling.answers(probabilities, several)
    tallies[rows, BINS + place] = labelling.right(labels, said)
    tallies[:, -2] = -labelling.log_likelihood(probabilities, labels, SMALLEST)
    tallies[:, -1] = 1
    return tallies


def calibration_error(totals: Floats) -> Floats:
    """Expected calibration error of the answer, 15 equal bins (Guo et al. 2017)."""
    confidence, right = totals[..., :BINS], totals[..., BINS : 2 * BINS]
    return ratio(np.abs(confidence - right).sum(-1), totals[..., -1])


def negative_log_likelihood(totals: Floats) -> Floats:
    """Mean negative log-likelihood of what is true, in nats."""
    return ratio(totals[..., -2], totals[..., -1])


def reliability(probabilities: Floats, labels: Labels) -> list[dict[str, float]]:
    """The filled bins of the reliability diagram: low, high, examples, confidence, accuracy."""
    tallies = calibration_tallies(probabilities, labels)
    counts = (tallies[:, :BINS] > 0).sum(axis=0)
    confidence, right = tallies[:, :BINS].sum(axis=0), tallies[:, BINS : 2 * BINS].sum(axis=0)
    return [
        {
            "low": bin_ / BINS,
            "high": (bin_ + 1) / BINS,
            "examples": int(counts[bin_]),
            "confidence": float(confidence[bin_] / counts[bin_]),
            "accuracy": float(right[bin_] / counts[bin_]),
        }
        for bin_ in range(BINS)
        if counts[bin_]
    ]


def calibration(probabilities: Floats, labels: Labels, bootstrap: Bootstrap) -> dict[str, Interval]:
    """Calibration error and negative log-likelihood with their intervals."""
    tallies = calibration_tallies(probabilities, labels)
    return {
        "ece": bootstrap.interval(tallies, calibration_error),
        "nll": bootstrap.interval(tallies, negative_log_likelihood),
    }


def coverage(
    probabilities: Floats, labels: Labels, bootstrap: Bootstrap
) -> list[dict[str, float | Interval]]:
    """Accuracy against coverage: how often right when only the surest answers are given.

    For each of `COVERAGES`: the probability to ask for (`threshold`), the share of examples that
    have it (`coverage`), and the accuracy on these, with its Wilson interval (n counts groups).
    El-Yaniv and Wiener, JMLR 2010.
    """
    several = labels.ndim == 2
    sure = labelling.confidence(probabilities, several)
    right = labelling.right(labels, labelling.answers(probabilities, several))
    rows: list[dict[str, float | Interval]] = []
    for share in COVERAGES:
        threshold = float(np.quantile(sure, 1 - share))
        given = sure >= threshold
        groups = len(np.unique(bootstrap.groups[given]))
        accuracy = wilson(float(right[given].mean()), groups, bootstrap.confidence)
        rows.append({"threshold": threshold, "coverage": float(given.mean()), "accuracy": accuracy})
    return rows


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature that calibrates logits [n, classes] on their labels (Guo et al. 2017).

    Minimises the negative log-likelihood over log T, with a standard normal prior on log T: it
    weighs as one example, and keeps a few perfect answers from making the model certain.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    logits = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        surprise = labelling.surprise(logits / temperature, labels)
        return float(surprise.sum() + 0.5 * log_temperature**2)

    found = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
