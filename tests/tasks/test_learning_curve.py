"""What more labels would bring: the curve, how it goes on, and what its interval holds."""

from __future__ import annotations

import numpy as np
import pytest

from tasks import learning_curve, ridge
from tasks.learning_curve import LearningCurve, extrapolated
from tasks.metrics import Bootstrap

CLASSES = 5


def clouds(count: int, seed: int = 0, spread: float = 1.6) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds in 60 dimensions, of which a few tell the classes apart."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, CLASSES, count)
    features = generator.normal(0, 1, (count, 60))
    features[:, :CLASSES] += spread * np.eye(CLASSES)[targets]
    return features.astype(np.float32), targets


def curve(count: int, seed: int = 0, groups: np.ndarray | None = None) -> LearningCurve:
    features, targets = clouds(count, seed)
    resamples = Bootstrap(np.arange(count) if groups is None else groups, 300, seed=seed)
    found = learning_curve.measure(features, targets, CLASSES, resamples, count)
    assert found is not None
    return found


@pytest.mark.parametrize(("lowest", "slope", "exponent"), [(0.1, 2.0, 0.5), (0.0, 1.5, 0.3)])
def test_a_power_law_is_carried_on(lowest: float, slope: float, exponent: float) -> None:
    sizes, at = [100, 200, 400, 800], np.array([1600.0, 20_000.0])
    errors = np.array([[lowest + slope * size**-exponent for size in sizes]])
    expected = lowest + slope * at**-exponent
    assert extrapolated(sizes, errors, at)[0] == pytest.approx(expected, abs=1e-9)
    if not lowest:
        assert extrapolated(sizes, errors, at, floor=False)[0] == pytest.approx(expected, abs=1e-9)


def test_errors_that_rise_are_not_carried_on_to_rise() -> None:
    found = extrapolated([100, 200, 400], np.array([[0.2, 0.21, 0.22]]), np.array([800.0]))
    assert found[0, 0] == pytest.approx(0.21)


def test_where_nothing_is_wrong_something_may_still_be() -> None:
    targets = np.arange(400) % CLASSES
    features = (10 * np.eye(60)[targets]).astype(np.float32)
    resamples = Bootstrap(np.arange(400), 300)
    found = learning_curve.measure(features, targets, CLASSES, resamples, 400)
    assert found is not None and found.accuracy[-1].value == found.now.value == 1.0
    assert found.accuracy[-1].low < 0.995 and found.now.low < 0.995
    assert found.gain.low <= found.gain.value <= found.gain.high > 0.005


def test_the_interval_from_a_quarter_holds_the_accuracy_of_all() -> None:
    features, targets = clouds(20_000, seed=1000)  # to judge by
    held = []
    for seed in range(12):
        x, y = clouds(2400, seed)
        quarter = Bootstrap(np.arange(600), 300, seed=seed)
        found = learning_curve.measure(x[:600], y[:600], CLASSES, quarter, 1200)
        assert found is not None
        head = ridge.fit(x, y, CLASSES)
        accuracy = ((features @ head.weight.T + head.bias).argmax(1) == targets).mean()
        held.append(found.doubled.low <= accuracy <= found.doubled.high)
    assert sum(held) >= 10


def test_more_labels_bring_less_and_less() -> None:
    small, large = curve(400), curve(4000)
    values = [figure.value for figure in small.accuracy]
    assert values[0] < values[-1] < small.now.value + 0.02
    assert small.more == 200 and large.more == 400
    assert small.gain.value > large.gain.value >= 0
    assert small.gain.low >= 0
    assert "200 more labels would bring a linear head about +" in small.sentence


def test_copies_are_never_on_both_sides() -> None:
    generator = np.random.default_rng(0)
    once = generator.normal(0, 1, (150, 200)).astype(np.float32)
    features, targets = np.repeat(once, 4, 0), np.repeat(generator.integers(0, 2, 150), 4)
    groups = np.repeat(np.arange(150), 4)
    apart = learning_curve.measure(features, targets, 2, Bootstrap(groups, 50), 600)
    leaking = learning_curve.measure(features, targets, 2, Bootstrap(np.arange(600), 50), 600)
    assert apart is not None and leaking is not None
    assert abs(apart.accuracy[-1].value - 0.5) < 0.15  # nothing but chance
    assert leaking.accuracy[-1].value > 0.7


def test_it_repeats_exactly() -> None:
    assert curve(400) == curve(400)


def test_too_few_examples_have_no_curve() -> None:
    features, targets = clouds(150)
    few = Bootstrap(np.arange(150), 50)
    assert learning_curve.measure(features, targets, CLASSES, few, 150) is None
