"""How good predictions are, and how sure one can be of it.

Every figure here is a function of sums over examples (right answers of a class, confidence in a
bin, …). So one resampling of those sums gives the interval of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks import labelling
from tasks.labelling import Labels

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CELLS = 2_000_000  # resampled counts held at once


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds it at the chosen confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScore:
    """One class: how much of it is found, and how much of what is called it is right."""

    name: str
    support: int  # examples of the class
    predicted: int  # examples called it
    precision: Interval | None  # None: never predicted
    recall: Interval | None  # None: no example
    f1: Interval | None  # None: neither


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of a test set, the same for every figure that is asked of it.

    Whole groups are drawn (cluster bootstrap), since near-duplicates are not separate evidence;
    where every group has one member, this is the ordinary bootstrap.
    """

    groups: Ints  # [n], the group 0 … g-1 of each example
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    @property
    def clusters(self) -> int:
        return int(self.groups.max()) + 1

    def totals(self, tallies: Any) -> Floats:
        """Column sums of `tallies` [n, s] (dense or sparse) in each resample: [resamples, s]."""
        from scipy.sparse import csr_array

        n, g = len(self.groups), self.clusters
        members = csr_array((np.ones(n), (self.groups, np.arange(n))), shape=(g, n))
        per_group = csr_array(members @ csr_array(tallies))
        generator = np.random.default_rng(self.seed)
        step = max(1, CELLS // g)
        parts = []
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            drawn = generator.integers(0, g, (rows, g)) + np.arange(rows)[:, None] * g
            counts = np.bincount(drawn.ravel(), minlength=rows * g).reshape(rows, g)
            parts.append(np.asarray(counts @ per_group, dtype=np.float64))
        return np.concatenate(parts)

    def interval(self, tallies: Any, figure: Callable[[Floats], Floats]) -> Interval:
        """Percentile interval of `figure`, a function of column sums [..., s] → [...].

        Widened to hold the estimate itself, which a figure that noise pushes one way (the
        calibration error) can leave.
        """
        value = float(figure(np.asarray(tallies.sum(axis=0), dtype=np.float64)))
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(figure(self.totals(tallies)), [tail, 1 - tail])
        return Interval(value, min(float(low), value), max(float(high), value))


def share(right: Any, bootstrap: Bootstrap) -> Interval:
    """Share of `right` answers [n]: resampled, or Wilson's interval where all or none are.

    Resampling a set without a single error (or right answer) shows none either.
    """
    right = np.asarray(right, np.float64)
    value = float(right.mean())
    if value in (0.0, 1.0):
        return wilson(value, bootstrap.clusters, bootstrap.confidence)
    tallies = np.column_stack([right, np.ones_like(right)])
    return bootstrap.interval(tallies, lambda totals: ratio(totals[..., 0], totals[..., 1]))


def group_index(groups: Any) -> Ints:
    """Numbers 0 … g-1 for group names [n]."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64).ravel()


def confusion(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts [classes, classes]: row = true class, column = predicted class."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def answer_tallies(labels: Labels, predicted: Labels, classes: int) -> Any:
    """What accuracy, balanced accuracy and F1 are sums of: sparse [n, 3 · classes + 2].

    One column a class for right answers, for examples and for predictions; whether the answer is
    right as a whole; and 1.
    """
    from scipy.sparse import csr_array, hstack

    true, called = (_members(each, classes) for each in (labels, predicted))
    whole = labelling.right(labels, predicted)
    ends = csr_array(np.column_stack([whole, np.ones_like(whole)]).astype(np.float64))
    return csr_array(hstack([true.multiply(called), true, called, ends]))


def _members(labels: Labels, classes: int) -> Any:
    """1 where an example has a class: sparse [n, classes]."""
    from scipy.sparse import csr_array

    if labels.ndim == 2:
        return csr_array(labels.astype(np.float64))
    places = (np.arange(len(labels)), labels)
    return csr_array((np.ones(len(labels)), places), shape=(len(labels), classes))


def _by_class(totals: Floats) -> list[Floats]:
    """Right answers, examples and predictions of each class."""
    return list(np.split(totals[..., :-2], 3, axis=-1))


def accuracy(totals: Floats) -> Floats:
    """Share of answers that are right as a whole; `totals` [..., s] of `answer_tallies`."""
    return ratio(totals[..., -2], totals[..., -1])


def balanced_accuracy(totals: Floats) -> Floats:
    """Mean recall over the classes that occur."""
    right, support, _ = _by_class(totals)
    return ratio(ratio(right, support).sum(-1), (support > 0).sum(-1))


def macro_f1(totals: Floats) -> Floats:
    """Mean F1 over the classes that occur or are predicted."""
    right, support, predicted = _by_class(totals)
    either = support + predicted
    return ratio(ratio(2 * right, either).sum(-1), (either > 0).sum(-1))


def micro_f1(totals: Floats) -> Floats:
    """F1 over all labels of all examples together."""
    right, support, predicted = _by_class(totals)
    return ratio(2 * right.sum(-1), (support + predicted).sum(-1))


def hamming_accuracy(totals: Floats) -> Floats:
    """Share of right decisions, one for each example and class: 1 less the Hamming loss."""
    right, support, predicted = _by_class(totals)
    wrong = (support + predicted - 2 * right).sum(-1)
    return 1 - ratio(wrong, totals[..., -1] * right.shape[-1])


FIGURES = (accuracy, balanced_accuracy, macro_f1)  # with one label, micro-F1 is the accuracy
OF_SEVERAL = (*FIGURES, micro_f1, hamming_accuracy)
NAMES = [figure.__name__ for figure in OF_SEVERAL]


def answers(
    labels: Labels, predicted: Labels, classes: int, bootstrap: Bootstrap
) -> dict[str, Interval]:
    """`FIGURES`, or those `OF_SEVERAL` labels, with their intervals.

    Resampling a set without a single error (or right answer) shows none either, so there the
    Wilson bound of the accuracy serves what is as high.
    """
    tallies = answer_tallies(labels, predicted, classes)
    found = {
        figure.__name__: bootstrap.interval(tallies, figure)
        for figure in (OF_SEVERAL if labels.ndim == 2 else FIGURES)
    }
    share = found["accuracy"].value
    if share not in (0.0, 1.0):
        return found
    bound = wilson(share, bootstrap.clusters, bootstrap.confidence)
    return {
        name: Interval(x.value, bound.low, bound.high) if x.value == share else x
        for name, x in found.items()
    }


def wilson(share: float, n: float, confidence: float) -> Interval:
    """Wilson's score interval of a share of `n` (Wilson 1927): sound for few examples too."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, float(middle - half)), min(1.0, float(middle + half))
    return Interval(share, min(low, share), max(high, share))


def per_class(
    labels: Labels, predicted: Labels, names: list[str], bootstrap: Bootstrap
) -> list[ClassScore]:
    """Precision, recall and F1 of each class with Wilson intervals.

    Classes are often too small to resample. n is the number of groups, not of examples. F1 is a
    monotone function of the share f* = right / (examples or predictions of the class) (Hand,
    Christen and Kirielle 2021), so its interval is that of f*, mapped.
    """
    scores = []
    for target, name in enumerate(names):
        true, called = (labelling.has(each, target) for each in (labels, predicted))
        right = int((true & called).sum())

        def share(among: npt.NDArray[np.bool_], right: int = right) -> Interval | None:
            if not among.any():
                return None
            groups = len(np.unique(bootstrap.groups[among]))
            return wilson(right / int(among.sum()), groups, bootstrap.confidence)

        either = share(true | called)
        f1 = either and Interval(
            *(2 * x / (1 + x) for x in (either.value, either.low, either.high))
        )
        scores.append(
            ClassScore(name, int(true.sum()), int(called.sum()), share(called), share(true), f1)
        )
    return scores


def ratio(part: Any, whole: Any) -> Floats:
    """part / whole, 0 where there is nothing."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
