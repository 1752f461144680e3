"""Are new examples like the old ones? Error rates kept on equal ones, shifts found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from tasks import shift
from tasks.metrics import Interval

CLASSES = ["bag", "boot", "hat"]


def drawn(
    random: np.random.Generator, count: int, mixing: np.ndarray, moved: float = 0.0
) -> np.ndarray:
    """Correlated features, of more dimensions than examples."""
    hidden, width = mixing.shape
    noise = 0.5 * random.standard_normal((count, width))
    found = random.standard_normal((count, hidden)) @ mixing + noise + moved
    return found.astype(np.float32)


def answers(random: np.random.Generator, count: int, sure: float = 3.0) -> np.ndarray:
    scores = random.standard_normal((count, len(CLASSES)))
    scores[np.arange(count), random.integers(0, len(CLASSES), count)] += sure
    shares = np.exp(scores)
    return np.asarray(shares / shares.sum(1, keepdims=True))


def test_equal_distributions_raise_no_more_alarms_than_stated() -> None:
    level, trials, alarms = 0.1, 200, 0  # of both tests together, each at half of it
    for trial in range(trials):
        random = np.random.default_rng(trial)
        mixing = random.standard_normal((8, 150))
        old, new = drawn(random, 60, mixing), drawn(random, 20, mixing)
        features = shift.of_features(old, new, level / 2, trial, permutations=99)
        said = shift.of_predictions(answers(random, 100), answers(random, 30), level / 2, CLASSES)
        assert features and said
        alarms += features.p_value <= level / 2 or said.p_value <= level / 2
    assert alarms <= binom.ppf(0.999, trials, level)


def test_a_shift_of_features_is_found_with_few_new_examples() -> None:
    found = 0
    for trial in range(10):
        random = np.random.default_rng(trial)
        mixing = random.standard_normal((8, 300))
        result = shift.of_features(
            drawn(random, 200, mixing), drawn(random, 15, mixing, moved=0.4), 0.005, trial
        )
        assert result is not None
        found += result.differs
        assert result.examples == {"old": 200, "new": 15}
    assert found >= 9


def test_answers_of_a_model_that_is_less_sure_differ() -> None:
    random = np.random.default_rng(0)
    same = shift.of_predictions(answers(random, 300), answers(random, 100), 0.005, CLASSES)
    other = shift.of_predictions(answers(random, 300), answers(random, 100, 0.5), 0.005, CLASSES)
    assert same and other
    assert not same.differs and other.differs
    assert "'" in other.sentence and "differ from" in other.sentence


def test_a_difference_that_is_sure_but_small_is_none_to_act_on() -> None:
    random = np.random.default_rng(0)
    old, new = random.standard_normal((2, 500, 2)).astype(np.float32)
    result = shift.of_features(old, new + 0.17, 0.005, 0)
    assert result is not None
    assert result.p_value <= 0.005
    assert isinstance(result.size, Interval)
    assert 0.5 < result.size.low < result.size.value < shift.LEAST_AUC
    assert not result.differs


@pytest.mark.parametrize("count", [0, shift.LEAST - 1])
def test_too_few_examples_say_nothing(count: int) -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((50, 3)).astype(np.float32)
    assert shift.of_features(features, features[:count], 0.005, 0) is None
    assert shift.of_predictions(answers(random, 50), answers(random, count), 0.5, CLASSES) is None


def test_large_data_is_sampled_and_the_same_seed_says_the_same() -> None:
    random = np.random.default_rng(0)
    old, new = (random.standard_normal((n, 4)).astype(np.float32) for n in (2000, 700))
    first, second = (shift.of_features(old, new, 0.005, 3, permutations=99) for _ in range(2))
    assert first == second
    assert first and first.examples == {"old": shift.LIMIT, "new": shift.LIMIT}
