"""Ridge in closed form against refitting, and as a start for a linear head."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV

from tasks import ridge
from tasks.engine import heads


def drawn(n: int, d: int, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, n)
    return (rng.normal(size=(3, d))[targets] + noise * rng.normal(size=(n, d))).astype(
        "f4"
    ), targets


# More examples than features, and the other way round.
@pytest.mark.parametrize(("n", "d"), [(60, 20), (25, 60)])
def test_ridge_is_exact_leave_one_out(n: int, d: int) -> None:
    features, targets = drawn(n, d)
    x = features.astype(float)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    known = RidgeClassifierCV(ridge._STRENGTHS, scoring="accuracy").fit(x, targets)
    found = ridge.fit(features, targets, 3)
    assert found.accuracy == pytest.approx(known.best_score_)
    right = 0
    for i in range(n):
        others = np.arange(n) != i
        model = RidgeClassifier(alpha=known.alpha_).fit(x[others], targets[others])
        right += int(model.predict(x[i : i + 1])[0] == targets[i])
    assert found.accuracy == pytest.approx(right / n)
    scores = features @ found.weight.T + found.bias
    # scikit-learn's targets are -1 and 1, ours 0 and 1.
    expected = (RidgeClassifier(alpha=known.alpha_).fit(x, targets).decision_function(x) + 1) / 2
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(60, 20), (25, 60), (30, 30)])
def test_pieces_and_chosen_rows_change_nothing(
    monkeypatch: pytest.MonkeyPatch, n: int, d: int
) -> None:
    features, targets = drawn(n, d)
    whole = ridge.fit(features, targets, 3)
    monkeypatch.setattr(ridge, "_PIECE", 7 * min(n, d))
    rows = np.random.default_rng(1).permutation(2 * n)[:n]
    among = np.full((2 * n, d), np.nan, np.float32)
    among[rows] = features
    for found in (ridge.fit(features, targets, 3), ridge.fit(among, targets, 3, rows)):
        assert found.accuracy == whole.accuracy
        for name in ("left_out", "weight", "bias"):
            np.testing.assert_allclose(getattr(found, name), getattr(whole, name), atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 20), (25, 60)])
def test_groups_are_left_out_whole(monkeypatch: pytest.MonkeyPatch, n: int, d: int) -> None:
    features, targets = drawn(n, d)
    groups = np.random.default_rng(2).integers(0, n // 3, n)  # of one, two, three …, in any order
    monkeypatch.setattr(ridge, "_PIECE", 7 * min(n, d))
    found = ridge.fit(features, targets, 3, groups=groups)
    x = features.astype(float)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    best = 0.0
    for strength in ridge._STRENGTHS:
        scores = np.empty((n, 3))
        for group in np.unique(groups):
            others = groups != group
            model = Ridge(alpha=strength).fit(x[others], np.eye(3)[targets[others]])
            scores[~others] = model.predict(x[~others])
        accuracy = float((scores.argmax(1) == targets).mean())
        if accuracy > best:
            best, left_out = accuracy, scores
    assert found.accuracy == pytest.approx(best)
    np.testing.assert_allclose(found.left_out, left_out, atol=1e-7)


def test_copies_of_an_example_do_not_vouch_for_it() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 4)
    targets = rng.integers(0, 2, 40)[groups]  # nothing tells classes apart but whose copy it is
    features = rng.normal(size=(40, 60))[groups] + 0.01 * rng.normal(size=(160, 60))
    assert ridge.fit(features.astype("f4"), targets, 2).accuracy > 0.95
    assert ridge.fit(features.astype("f4"), targets, 2, groups=groups).accuracy < 0.7
    one = np.zeros(160, np.int64)
    assert 0 <= ridge.fit(features.astype("f4"), targets, 2, groups=one).accuracy <= 1


@pytest.mark.parametrize(("n", "d"), [(20_000, 100), (100, 20_000)])
def test_a_fit_never_holds_all_features_in_doubles(n: int, d: int) -> None:
    features, targets = drawn(n, d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ridge, "_PIECE", 2**15)
        tracemalloc.start()
        ridge.fit(features, targets, 3)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < n * d * 8 / 2


def test_a_head_in_closed_form_predicts_and_is_not_overconfident() -> None:
    features, targets = drawn(300, 30, noise=1.0)
    x, y = torch.from_numpy(features), torch.from_numpy(targets)
    weight, bias = heads.solve(x[:200], y[:200], 3, label_smoothing=0.1)
    logits = x[200:] @ weight.T + bias
    assert (logits.argmax(1) == y[200:]).float().mean() > 0.9
    assert torch.nn.functional.cross_entropy(logits, y[200:]) < 0.5
    assert logits.abs().max() < 40


def test_a_class_without_examples_is_never_predicted() -> None:
    features, targets = drawn(100, 10, noise=0.5)
    found = ridge.fit(features, targets, 5)
    assert set((features @ found.weight.T + found.bias).argmax(1)) <= {0, 1, 2}
