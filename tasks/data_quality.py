"""What the data itself says before anything is trained: wrong labels, odd examples, odd classes,
columns that give the answer away, and splits that differ.

All of it from features of the frozen backbone, labels and columns; nothing here changes the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import labelling, ridge
from tasks.labelling import Floats, Ints, Labels

Features = npt.NDArray[np.float32]

FAR = 6.0  # robust standard deviations from which on an example is an outlier
LEAST_OF_CLASS = 6  # examples of a class below which none of them is suspected
TOLD = 0.5  # of the examples with one of several labels, below which it is not suspected
ODD_RECALL = 0.5  # of the median class's, below which a class is odd
ODD_SPREAD = 3.0  # times wider or tighter than the median class
ODD_APART = 4.0  # times as far from the nearest other class as the median class
ODD_OWN_WORLD = 4.5  # times as far from it, against its own spread, as the median class
ODD_EXAMPLES = 10  # a class of fewer is not judged
TELLING = 0.5  # of the way from the commonest class to always right, from which on a column leaks
BINS = 20  # of a column of numbers
LEVEL = 0.01  # of the tests for drift, for all of them together
_SCALES = np.logspace(-0.5, 1.5, 21)


@dataclass(frozen=True)
class Suspect:
    """An example whose label is probably another one."""

    row: int  # of the features
    label: int  # of several labels: whether it has the likely one
    likely: int
    confidence: float  # of the likely label less that of the given one


@dataclass(frozen=True)
class OddClass:
    """A class that is unlike the others, and how."""

    target: int
    recall: float  # leave-one-out, by a linear head
    spread: float  # distance of its examples to their nearest neighbours, over the median class's
    apart: float  # distance to the nearest other class, over the median class's


@dataclass(frozen=True)
class TellingColumn:
    """A column from which alone the label can be told."""

    name: str
    accuracy: float  # cross-validated
    majority: float


@dataclass(frozen=True)
class Drift:
    """How unlike two samples of a classifier's outputs are."""

    p_value: float  # smallest of the tests, Bonferroni-corrected
    differs: bool
    distance: float  # Kolmogorov–Smirnov statistic of the test that found most
    target: int  # the class whose output differs most


def left_out_probabilities(
    features: Features, targets: Labels, nearest: Ints, classes: int, groups: Ints | None = None
) -> Floats:
    """What the other examples say of each, and not those of its own group [n]: [n, classes].

    The mean of a linear head's leave-one-out scores, as probabilities at the temperature of the
    lowest cross-entropy, and of the shares among its `nearest` [n, k] neighbours' labels: each is
    misled by other wrong labels.
    """
    several = targets.ndim == 2
    solution = ridge.fit(features, targets, classes, groups=groups)
    scores = labelling.centred(solution.left_out, several)

    def shares(scale: float) -> Floats:
        return labelling.probabilities(scale * scores, several)

    losses = [-labelling.log_likelihood(shares(s), targets, 1e-9).mean() for s in _SCALES]
    votes = labelling.votes(targets, nearest, np.ones(nearest.shape), classes)
    return (shares(float(_SCALES[int(np.argmin(losses))])) + votes / nearest.shape[1]) / 2


def label_errors(probabilities: Floats, targets: Labels) -> list[Suspect]:
    """Examples that are probably mislabelled, the surest first.

    Of several labels each is asked about by itself, as a question of no and yes, and `likely` is
    the one that is too much or missing; an example is named once, for the surest of them. Of a
    label that the others hardly tell, nothing is said: that may be the features' fault.

    Ranked by how much likelier another class is than the given one; as many as confident learning
    counts (Northcutt, Jiang and Chuang, JAIR 2021, arXiv:1911.00068): examples for which another
    class is at least as likely as it is on average among its own examples.
    """
    if targets.ndim == 2:
        return _errors_of_several(probabilities, targets)
    classes = probabilities.shape[1]
    threshold = np.full(classes, np.inf)
    for target in np.unique(targets):
        threshold[target] = probabilities[targets == target, target].mean()
    rows = np.arange(len(targets))
    confident = np.where(probabilities >= threshold, probabilities, 0)
    count = int(((confident.max(1) > 0) & (confident.argmax(1) != targets)).sum())
    others = probabilities.copy()
    others[rows, targets] = -1
    likely = others.argmax(1)
    margin = probabilities[rows, likely] - probabilities[rows, targets]
    # Of a class with hardly any examples, neither head nor neighbours can say what is one.
    margin[np.bincount(targets, minlength=classes)[targets] < LEAST_OF_CLASS] = -1
    order = np.argsort(-margin, kind="stable")[:count]
    return [
        Suspect(int(r), int(targets[r]), int(likely[r]), float(margin[r]))
        for r in order
        if margin[r] > 0
    ]


def _errors_of_several(probabilities: Floats, targets: Labels) -> list[Suspect]:
    found: dict[int, Suspect] = {}
    for number, yes in enumerate(probabilities.T):
        own = labelling.has(targets, number)
        if not own.any() or (yes[own] > labelling.CUT).mean() < TOLD:
            continue
        asked = np.stack([1 - yes, yes], 1)
        for each in label_errors(asked, own.astype(np.int64)):
            surer = each.row not in found or each.confidence > found[each.row].confidence
            if surer:
                found[each.row] = replace(each, likely=number)
    return sorted(found.values(), key=lambda each: (-each.confidence, each.row))


def outliers(distances: Features) -> Ints:
    """Rows whose distance [n, k] to their nearest neighbours is far beyond the rest's, farthest
    first: by the median and the median absolute deviation of the logarithms."""
    mean = np.log(np.maximum(distances.mean(1), 1e-6))
    middle = np.median(mean)
    deviation = 1.4826 * np.median(np.abs(mean - middle)) + 1e-9
    beyond = (mean - middle) / deviation
    far = np.flatnonzero(beyond > FAR)
    return far[np.argsort(-beyond[far], kind="stable")]


def odd_classes(
    features: Features, probabilities: Floats, targets: Labels, distances: Features
) -> list[OddClass]:
    """Classes that are unlike the others: mixed up, or not what they say.

    Those that cannot be told while the others can, whose examples lie far tighter or wider than
    the others', or which are far from all other classes, also for how tight they are.
    """
    own = {t: labelling.has(targets, t) for t in range(probabilities.shape[1])}
    judged = [t for t, here in own.items() if here.sum() >= ODD_EXAMPLES]
    if len(judged) < 3:
        return []
    said = labelling.answers(probabilities, targets.ndim == 2)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    centres = np.stack([unit[own[t]].mean(0) for t in judged])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    between = 1 - centres @ centres.T
    np.fill_diagonal(between, np.inf)
    recall = np.array([labelling.has(said, t)[own[t]].mean() for t in judged])
    spread = _to_median([np.median(distances[own[t]].mean(1)) for t in judged])
    apart = _to_median(between.min(1))
    odd = (
        (recall < ODD_RECALL * np.median(recall))
        | (spread > ODD_SPREAD)
        | (spread < 1 / ODD_SPREAD)
        | (apart > ODD_APART)
        | (apart > ODD_OWN_WORLD * spread)
    )
    return [
        OddClass(judged[i], float(recall[i]), float(spread[i]), float(apart[i]))
        for i in np.flatnonzero(odd)
    ]


def _to_median(values: Any) -> Floats:
    found = np.maximum(np.asarray(values, np.float64), 1e-9)
    return found / np.median(found)


def telling_columns(
    columns: pd.DataFrame, targets: Ints, groups: Ints, seed: int
) -> list[TellingColumn]:
    """Columns from which alone the label can be told, cross-validated on halves, in which groups
    [n] stay together.

    Each value, or each of `BINS` quantiles of numbers, answers with its commonest class.
    """
    half = np.random.default_rng(seed).permutation(int(groups.max()) + 1)[groups] % 2 == 0
    majority = float(np.bincount(targets).max() / len(targets))
    found = []
    for name in columns:
        codes = _codes(columns[name])
        right = sum(_right(codes, targets, fitted) for fitted in (half, ~half))
        accuracy = right / len(targets)
        if accuracy >= majority + TELLING * (1 - majority):
            found.append(TellingColumn(str(name), float(accuracy), majority))
    return sorted(found, key=lambda column: -column.accuracy)


def drift(before: Floats, after: Floats) -> Drift:
    """Whether two samples of class probabilities [n, classes] are of the same distribution.

    A Kolmogorov–Smirnov test for each class, Bonferroni-corrected (Lipton, Wang and Smola, ICML
    2018; Rabanser, Günnemann and Lipton, NeurIPS 2019, arXiv:1810.11953).
    """
    from scipy.stats import ks_2samp

    classes = before.shape[1]
    tests = [ks_2samp(before[:, c], after[:, c]) for c in range(classes)]
    worst = int(np.argmin([test.pvalue for test in tests]))
    p_value = min(1.0, float(tests[worst].pvalue) * classes)
    return Drift(p_value, p_value < LEVEL, float(tests[worst].statistic), worst)


def _codes(column: Any) -> Ints:
    """A number for each value; for many numbers, for each quantile."""
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > BINS:
        column = pd.qcut(column, BINS, duplicates="drop")
    return pd.factorize(column, use_na_sentinel=False)[0].astype(np.int64)


def _right(codes: Ints, targets: Ints, fitted: npt.NDArray[np.bool_]) -> int:
    """How many of the others the commonest class of their value among the `fitted` is right on."""
    counts = np.zeros((codes.max() + 1, targets.max() + 1), np.int64)
    np.add.at(counts, (codes[fitted], targets[fitted]), 1)
    answer = np.where(counts.any(1), counts.argmax(1), -1)
    return int((answer[codes[~fitted]] == targets[~fitted]).sum())
