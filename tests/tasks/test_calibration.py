"""Calibration error, likelihood and temperature against known values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax as scipy_softmax
from sklearn.metrics import log_loss

from tasks import calibration, labelling
from tasks.metrics import Bootstrap


def sample(n: int = 4000, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are overconfident by `temperature`, and labels drawn from the truth."""
    generator = np.random.default_rng(0)
    truth = generator.normal(0, 2, (n, 4))
    labels = np.array([generator.choice(4, p=p) for p in scipy_softmax(truth, axis=1)])
    return truth * temperature, labels


def test_the_calibration_error_is_that_of_a_hand_count() -> None:
    # Two in the bin of .6 (one right), two in that of .9 (both right).
    probabilities = np.array([[0.61, 0.39], [0.37, 0.63], [0.9, 0.1], [0.9, 0.1]])
    labels = np.array([0, 0, 0, 0])
    found = calibration.calibration(probabilities, labels, Bootstrap(np.arange(4)))
    assert found["ece"].value == pytest.approx((abs(1.24 - 1) + abs(1.8 - 2)) / 4)
    assert found["nll"].value == pytest.approx(log_loss(labels, probabilities, labels=[0, 1]))


def test_bins_are_closed_above() -> None:
    edge = np.array([[0.6, 0.4], [0.6000001, 0.3999999]])
    bins = calibration.reliability(edge, np.array([0, 0]))
    assert [round(x["high"] * calibration.BINS) for x in bins] == [9, 10]
    assert [x["examples"] for x in bins] == [1, 1]


def test_softmax_is_that_of_scipy() -> None:
    logits = np.array([[1000.0, 999.0, 0.0], [-5.0, 0.0, 5.0]])
    found = labelling.softmax(logits, 2.0)
    assert np.allclose(found, scipy_softmax(logits / 2, axis=1), rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_again(temperature: float) -> None:
    logits, labels = sample(temperature=temperature)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.07)


def test_the_temperature_mends_the_calibration_error() -> None:
    logits, labels = sample(temperature=3.0)
    bootstrap = Bootstrap(np.arange(len(labels)), 200)
    fitted = calibration.fit_temperature(logits[:2000], labels[:2000])
    before = calibration.calibration(labelling.softmax(logits), labels, bootstrap)
    after = calibration.calibration(labelling.softmax(logits, fitted), labels, bootstrap)
    assert before["ece"].low > 0.1 > 0.05 > after["ece"].value
    assert after["nll"].high < before["nll"].low


def test_a_few_perfect_answers_do_not_make_the_model_certain() -> None:
    labels = np.arange(12) % 3
    logits = 2.0 * np.eye(3)[labels]
    assert calibration.fit_temperature(logits, labels) > 0.25
    assert calibration.fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0


def test_the_surest_answers_are_right_more_often() -> None:
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.5, 1, 4000)
    probabilities = np.column_stack([sure, 1 - sure])
    labels = (generator.random(4000) > sure).astype(np.int64)  # calibrated
    rows = calibration.coverage(probabilities, labels, Bootstrap(np.arange(4000)))
    assert [round(row["coverage"], 2) for row in rows] == list(calibration.COVERAGES)
    accuracies = [row["accuracy"].value for row in rows]
    assert accuracies == sorted(accuracies)
    for row in rows:  # right as often as the mean of what is above the threshold
        expected = (1 + row["threshold"]) / 2
        assert row["accuracy"].low - 0.01 < expected < row["accuracy"].high + 0.01
