"""Figures against scikit-learn and SciPy; intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics

from tasks import metrics
from tasks.metrics import Bootstrap


def answers(n: int = 400, classes: int = 5, seed: int = 0) -> tuple[metrics.Ints, metrics.Ints]:
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, n, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    wrong = generator.random(n) < 0.3
    return labels, np.where(wrong, generator.integers(0, classes, n), labels)


def each(n: int, **options: object) -> Bootstrap:
    return Bootstrap(np.arange(n), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [None, 3])
def test_figures_are_those_of_scikit_learn(missing: int | None) -> None:
    labels, predicted = answers()
    if missing is not None:  # a class that the test set lacks but the model predicts
        keep = labels != missing
        labels, predicted = labels[keep], predicted[keep]
    found = metrics.answers(labels, predicted, 5, each(len(labels)))
    assert found["accuracy"].value == sklearn_metrics.accuracy_score(labels, predicted)
    assert found["macro_f1"].value == pytest.approx(
        sklearn_metrics.f1_score(labels, predicted, average="macro")
    )
    recalls = [(predicted[labels == c] == c).mean() for c in np.unique(labels)]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    for interval in found.values():
        assert interval.low < interval.value < interval.high


def test_confusion_is_that_of_scikit_learn() -> None:
    labels, predicted = answers()
    expected = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(5))
    assert (metrics.confusion(labels, predicted, 5) == expected).all()


def test_per_class_is_that_of_scikit_learn_with_wilson_intervals() -> None:
    labels, predicted = answers()
    scores = metrics.per_class(labels, predicted, list("abcde"), each(400))
    expected = sklearn_metrics.precision_recall_fscore_support(labels, predicted)
    for score, precision, recall, f1, support in zip(scores, *expected, strict=True):
        assert score.precision and score.recall and score.f1
        assert score.precision.value == pytest.approx(precision)
        assert score.recall.value == pytest.approx(recall)
        assert score.f1.value == pytest.approx(f1)
        assert score.support == support
        assert score.f1.low < f1 < score.f1.high
    right = int(((labels == 0) & (predicted == 0)).sum())
    expected_interval = binomtest(right, scores[0].support).proportion_ci(method="wilson")
    assert scores[0].recall is not None
    assert scores[0].recall.low == pytest.approx(expected_interval.low)
    assert scores[0].recall.high == pytest.approx(expected_interval.high)


def test_a_class_without_examples_or_predictions_has_no_scores() -> None:
    labels, predicted = np.array([0, 0, 1]), np.array([0, 1, 1])
    absent = metrics.per_class(labels, predicted, ["a", "b", "c"], each(3))[2]
    assert (absent.precision, absent.recall, absent.f1) == (None, None, None)


def coverage(rows_a_group: int, as_groups: bool, runs: int = 400) -> float:
    """How often the interval of the accuracy holds the truth, over simulated test sets."""
    generator = np.random.default_rng(1)
    truth, clusters, held = 0.85, 200, 0
    for run in range(runs):
        right = np.repeat(generator.random(clusters) < truth, rows_a_group).astype(np.int64)
        groups = np.repeat(np.arange(clusters), rows_a_group)
        if not as_groups:
            groups = np.arange(len(right))
        found = metrics.answers(right * 0, 1 - right, 2, Bootstrap(groups, 200, 0.95, run))
        held += found["accuracy"].low <= truth <= found["accuracy"].high
    return held / runs


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    assert 0.91 <= coverage(1, as_groups=True) <= 0.98


def test_near_duplicates_count_as_one_piece_of_evidence() -> None:
    assert 0.91 <= coverage(4, as_groups=True) <= 0.98
    assert coverage(4, as_groups=False) < 0.8  # what ignoring the groups would do


def test_an_interval_widens_with_the_confidence_and_repeats_by_seed() -> None:
    labels, predicted = answers()
    narrow = metrics.answers(labels, predicted, 5, each(400, confidence=0.8))["accuracy"]
    wide = metrics.answers(labels, predicted, 5, each(400, confidence=0.99))["accuracy"]
    assert wide.low < narrow.low < narrow.high < wide.high
    again = metrics.answers(labels, predicted, 5, each(400, confidence=0.99))["accuracy"]
    assert again == wide


def test_resampling_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predicted = answers()
    whole = each(400).totals(metrics.answer_tallies(labels, predicted, 5))
    monkeypatch.setattr(metrics, "CELLS", 10_000)
    assert (each(400).totals(metrics.answer_tallies(labels, predicted, 5)) == whole).all()


def test_no_errors_are_not_certainty() -> None:
    labels = np.arange(30) % 3
    found = metrics.answers(labels, labels, 3, each(30))
    expected = binomtest(30, 30).proportion_ci(method="wilson").low
    for interval in found.values():
        assert (interval.value, interval.high) == (1, 1)
        assert interval.low == pytest.approx(expected)
