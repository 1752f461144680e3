"""Two models on the same examples: against SciPy, and against simulated models of known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from tasks import paired
from tasks.labelling import Ints
from tasks.paired import Comparison, Pairs


def compare(labels: Ints, model: Ints, baseline: Ints, groups: Ints | None = None) -> Comparison:
    groups = np.arange(len(labels)) if groups is None else groups
    return paired.compare(labels, model, baseline, groups, 0.95)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 9), (9, 1), (60, 40)])
def test_the_paired_test_is_the_exact_one_of_mcnemar(gained: int, lost: int) -> None:
    exact = binomtest(gained, gained + lost, alternative="greater").pvalue if gained else 1.0
    assert paired.p_values(gained, lost) == pytest.approx(exact)


def test_intervals_hold_the_truth_as_often_as_stated() -> None:
    """Also where hardly an answer differs, where resampling would be sure of itself."""
    for gain, apart in ((0.0, 0.02), (0.03, 0.05), (-0.02, 0.3)):
        shares = [(apart + gain) / 2, (apart - gain) / 2, 1 - apart]
        counts = np.random.default_rng(0).multinomial(200, shares, 1000)
        found = paired.intervals([Pairs(g, x, 200) for g, x, _ in counts], 0.95)
        assert np.mean((found[:, 0] <= gain) & (gain <= found[:, 1])) > 0.93
    [[low, high]] = paired.intervals([Pairs(0, 0, 200)], 0.95)
    assert -low == pytest.approx(high) == pytest.approx(3.8415 / 203.8415, abs=1e-4)


def test_groups_are_no_separate_evidence() -> None:
    steps, groups = np.repeat([1, -1, 0, 0], 50), np.arange(200) // 5
    pairs = Pairs.of(steps, groups)
    assert pairs.design == pytest.approx(5, rel=0.15)  # and somewhat more, as 40 are not many
    assert pairs.gained == pytest.approx(10, rel=0.15)
    assert Pairs.of(steps, np.arange(200)) == Pairs(50, 50, 200)
    same = Pairs.of(np.zeros(200, np.int64), groups)
    assert same.examples * same.few == pytest.approx(40) and same.all == 200


def test_corrected_p_values_are_holms() -> None:
    found = paired.holm(np.array([0.01, 0.04, 0.03]))
    assert found.tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_mcnemar_is_exact() -> None:
    generator = np.random.default_rng(2)
    labels = np.zeros(300, np.int64)
    model = (generator.random(300) < 0.1).astype(np.int64)
    baseline = (generator.random(300) < 0.2).astype(np.int64)
    found = compare(labels, model, baseline)
    gained = int(((model == 0) & (baseline == 1)).sum())
    lost = int(((model == 1) & (baseline == 0)).sum())
    assert (found.only_model_right, found.only_baseline_right) == (gained, lost)
    assert found.p_value == pytest.approx(binomtest(gained, gained + lost, 0.5).pvalue)
    assert found.difference.value == pytest.approx((gained - lost) / 300)
    assert found.verdict == "better"
    assert compare(labels, baseline, model).verdict == "worse"


def test_too_small_a_difference_is_not_distinguishable() -> None:
    labels = np.zeros(100, np.int64)
    model, baseline = labels.copy(), labels.copy()
    model[:10], baseline[3:16] = 1, 1
    found = compare(labels, model, baseline)
    assert found.difference.low < 0 < found.difference.high
    assert found.verdict == "not distinguishable"


@pytest.mark.parametrize(
    "pairs", [300, pytest.param(2000, marks=pytest.mark.long)], ids=["short", "long"]
)
@pytest.mark.parametrize(
    "sizes",
    [
        [134, 133, 133],
        [67] * 6,
        [27] * 15,
        [1] * 400,
        [150, 150, *[1] * 100],
        [100] * 3 + [1] * 100,
    ],
    ids=["three", "six", "fifteen", "singles", "two large ones", "three large ones"],
)
def test_equal_models_are_rarely_called_different(pairs: int, sizes: list[int]) -> None:
    """Also where the answers in a group go together, and groups are few, or few are large."""
    generator = np.random.default_rng(2)
    members = np.repeat(np.arange(len(sizes)), sizes)[:400]
    groups = int(members.max()) + 1
    called = 0
    for _ in range(pairs):
        common, own = generator.normal(size=(2, groups)), generator.normal(size=(2, len(members)))
        a, b = (0.55 * common[:, members] + 0.84 * own < 0.8).astype(np.int64)
        called += compare(np.ones_like(a), a, b, members).verdict != "not distinguishable"
    # At most 5 %, with the room that so many pairs leave (three standard errors).
    assert called / pairs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / pairs)


def test_that_nothing_differs_is_no_certainty() -> None:
    right = np.ones(200, np.int64)
    found = compare(right, right, right)
    assert (found.p_value, found.verdict) == (1.0, "not distinguishable")
    assert found.difference.low < -0.01 and found.difference.high > 0.01
