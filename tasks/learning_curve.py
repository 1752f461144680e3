"""How much would more labels bring? Accuracy against labels, measured on features that are there.

A ridge head is fitted to ever larger parts of the data and judged on folds that it did not see, so
that the curve costs a few seconds. Its error is extrapolated by a power law with a floor,

    error(n) = a + b · n^(−c),  a, b ≥ 0

(Hestness et al. 2017, arXiv:1712.00409; Viering and Loog 2021, arXiv:2103.10948). It is the curve
of the head alone: what thawing brings comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tasks import labelling, metrics, ridge
from tasks.labelling import Floats, Ints, Labels
from tasks.metrics import Bootstrap, Interval
from tasks.progress import progress

FOLDS = 4
HALVINGS = 4  # sizes: all of the training folds, a half, a quarter …
LEAST = 40  # examples of the smallest size
LEAST_SIZES = 3  # that a curve can be fitted to
MORE = 200  # labels to ask about, or a tenth of those there are
_EXPONENTS = tuple(np.linspace(0.1, 1.5, 29))


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy of a linear head on frozen features by the number of labelled examples."""

    sizes: list[int]
    accuracy: list[Interval]  # at each size, on examples left out
    examples: int  # labels there are, training and validation
    now: Interval  # accuracy with all of them, by the fitted curve
    more: int  # further labels asked about
    gain: Interval  # accuracy that they would bring
    doubled: Interval  # accuracy with twice the labels

    @property
    def sentence(self) -> str:
        low, high = 100 * self.gain.low, 100 * self.gain.high
        return (
            f"{self.more:,} more labels would bring a linear head about "
            f"{100 * self.gain.value:+.1f} points ({low:+.1f} to {high:+.1f})."
        )


def measure(
    features: npt.NDArray[np.float32],
    targets: Labels,
    classes: int,
    bootstrap: Bootstrap,
    labelled: int,
) -> LearningCurve | None:
    """The curve of features [n, d]; None when there are too few examples for one.

    `bootstrap`: resamples of the same examples, whose groups are never on both sides of a fold.
    `labelled`: examples that there are, of which these are some.
    """
    parts = _folds(bootstrap)
    largest = min(len(inside) for inside, _ in parts)
    sizes = sorted({largest >> halving for halving in range(HALVINGS + 1)})
    sizes = [size for size in sizes if size >= max(LEAST, 2 * classes)]
    if len(sizes) < LEAST_SIZES:
        return None
    right = _right(features, targets, classes, sizes, parts)
    more = max(MORE, labelled // 10)
    at = np.array([labelled, labelled + more, 2 * labelled], np.float64)
    errors = 1 - bootstrap.totals(right) / bootstrap.totals(np.ones((len(right), 1)))
    fitted = 1 - extrapolated(sizes, 1 - right.mean(0, keepdims=True), at)[0]
    # So few sizes hardly tell curves apart, and the interval must not choose: the fitted one, one
    # whose error goes to 0, and one that is soon flat (each doubling brings half of the last).
    resampled = 1 - np.concatenate(
        [
            extrapolated(sizes, errors, at),
            extrapolated(sizes, errors, at, floor=False),
            extrapolated(sizes[-2:], errors[:, -2:], at, exponents=(1.0,)),
        ]
    )

    def interval(values: Floats, value: float) -> Interval:
        tail = (1 - bootstrap.confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(value, min(float(low), value), max(float(high), value))

    found = LearningCurve(
        sizes=sizes,
        accuracy=[metrics.share(right[:, i], bootstrap) for i in range(len(sizes))],
        examples=labelled,
        now=interval(resampled[:, 0], float(fitted[0])),
        more=more,
        gain=interval(resampled[:, 1] - resampled[:, 0], float(fitted[1] - fitted[0])),
        doubled=interval(resampled[:, 2], float(fitted[2])),
    )
    if not right[:, -1].all():
        return found
    # Resampling shows no error where there was none.
    low = found.accuracy[-1].low
    return replace(
        found,
        now=Interval(found.now.value, min(low, found.now.low), 1.0),
        gain=Interval(found.gain.value, min(0.0, found.gain.low), max(found.gain.high, 1 - low)),
        doubled=Interval(found.doubled.value, min(low, found.doubled.low), 1.0),
    )


def extrapolated(
    sizes: list[int],
    errors: Floats,
    at: Floats,
    floor: bool = True,
    exponents: Sequence[float] = _EXPONENTS,
) -> Floats:
    """Errors [curves, sizes] carried on to the sizes `at`: [curves, at].

    Least squares, by exponent; without a `floor` the error goes to 0 (a = 0).
    """
    known = np.array(sizes, np.float64)
    best = np.full(len(errors), np.inf)
    found = np.zeros((len(errors), len(at)))
    for exponent in exponents:
        falling, later = known**-exponent, at**-exponent
        slope, lowest = (errors @ falling) / (falling**2).sum(), np.zeros(len(errors))
        if floor:
            centred = falling - falling.mean()
            steep = np.maximum(0, errors @ centred / (centred**2).sum())
            above = errors.mean(1) - steep * falling.mean()
            slope = np.where(above > 0, steep, slope)
            lowest = np.maximum(above, 0)
        missed = ((errors - lowest[:, None] - slope[:, None] * falling) ** 2).sum(1)
        better = missed < best
        best[better] = missed[better]
        found[better] = lowest[better, None] + slope[better, None] * later
    return found


def _folds(bootstrap: Bootstrap) -> list[tuple[Ints, Ints]]:
    """What each fold learns from, group after group in a drawn order, and what it is judged on."""
    generator = np.random.default_rng(bootstrap.seed)
    fold = generator.permutation(np.arange(bootstrap.clusters) % FOLDS)[bootstrap.groups]
    found = []
    for held_out in range(FOLDS):
        place = generator.permutation(bootstrap.clusters)[bootstrap.groups]
        order = np.argsort(place, kind="stable")
        found.append((order[fold[order] != held_out], np.flatnonzero(fold == held_out)))
    return found


def _right(
    features: npt.NDArray[np.float32],
    targets: Labels,
    classes: int,
    sizes: list[int],
    parts: list[tuple[Ints, Ints]],
) -> Floats:
    """Whether each example was right when left out [n, sizes]."""
    right = np.zeros((len(targets), len(sizes)))
    with progress("learning curve", FOLDS * len(sizes)) as advance:
        for inside, outside in parts:
            for i, size in enumerate(sizes):
                chosen = np.sort(inside[:size])
                head = ridge.fit(features[chosen], targets[chosen], classes)
                scores = features[outside] @ head.weight.T + head.bias
                called = labelling.answers(scores, targets.ndim == 2)
                right[outside, i] = labelling.right(targets[outside], called)
                advance(1)
    return right
