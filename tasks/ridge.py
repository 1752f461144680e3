"""Ridge classification in closed form, with exact leave-one-out scores.

Leave-one-out residuals follow from the fit on all examples and their leverages, without refitting
(Allen 1974; Golub, Heath and Wahba 1979). Features are read in pieces, so they may lie in a mapped
file, and more examples take no more memory, but for their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks import labelling
from tasks.labelling import Labels

Doubles = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_STRENGTHS = np.logspace(-1, 5, 13)
_PIECE = 2**21  # numbers that are worked on at once: 16 MB of doubles


@dataclass(frozen=True)
class Ridge:
    """A linear classifier of features [n, d] in `classes` classes, the best of a grid."""

    accuracy: float  # leave-one-out
    left_out: Doubles  # [n, classes]: each example's scores by the fit without it
    weight: Doubles  # [classes, d], of the features as they came
    bias: Doubles  # [classes]


def fit(features: Features, targets: Labels, classes: int, rows: Ints | None = None) -> Ridge:
    """Fit members [n, classes] on standardised features; the strength has the best accuracy.

    Of several labels, it has the least squared error: of many, hardly an answer is right as a
    whole. The targets (`tasks.labelling`) are those of `rows` of the features, or of all.
    """
    x = _Standardised(features, rows)
    y, several = labelling.members(targets, classes), targets.ndim == 2
    centre = y.mean(0)
    turned = (_wide if x.width > x.count else _tall)(x, y - centre)
    right, leverages = np.zeros(len(_STRENGTHS)), np.empty((x.count, len(_STRENGTHS)))
    missed = np.zeros(len(_STRENGTHS))
    for chosen, z in turned.pieces():
        shrunk = 1 / (turned.squares[:, None] + _STRENGTHS)  # [r, strengths]
        leverages[chosen] = z**2 @ shrunk + 1 / x.count  # the last term is the intercept's
        for i in range(len(_STRENGTHS)):
            fitted = centre + z @ (turned.moments * shrunk[:, i, None])
            left_out = _left_out(y[chosen], fitted, leverages[chosen, i])
            said = labelling.answers(left_out, several)
            right[i] += labelling.right(targets[chosen], said).sum()
            missed[i] += ((y[chosen] - left_out) ** 2).sum() if several else 0
    best = int((-missed if several else right).argmax())  # the first of equals
    shrunk = turned.moments / (turned.squares + _STRENGTHS[best])[:, None]
    weight = turned.back(shrunk).T / x.scale
    bias = centre - weight @ x.mean
    scores = np.empty_like(y)
    for chosen, part in x.pieces():
        scores[chosen] = part @ weight.T + bias
    left_out = _left_out(y, scores, leverages[:, best])
    return Ridge(float(right[best] / x.count), left_out, weight, bias)


def _left_out(y: Doubles, fitted: Doubles, leverage: Doubles) -> Doubles:
    return y - (y - fitted) / (1 - leverage)[:, None]


class _Standardised:
    """Features [count, width] in doubles of mean 0 and spread 1, piece by piece."""

    def __init__(self, features: Features, rows: Ints | None) -> None:
        self.features, self.rows = features, rows
        self.count = len(features) if rows is None else len(rows)
        self.width = features.shape[1]
        self.mean: Doubles = sum(part.sum(0) for _, part in self.pieces()) / self.count
        squares = sum(((part - self.mean) ** 2).sum(0) for _, part in self.pieces())
        self.scale: Doubles = np.sqrt(squares / self.count) + 1e-6

    def pieces(self) -> Iterator[tuple[slice, Doubles]]:
        """Some rows at a time, as they came."""
        for chosen in _slices(self.count, self.width):
            rows = chosen if self.rows is None else self.rows[chosen]
            yield chosen, self.features[rows].astype(np.float64)

    def examples(self) -> Iterator[tuple[slice, Doubles]]:
        for chosen, part in self.pieces():
            yield chosen, (part - self.mean) / self.scale

    def columns(self) -> Iterator[Doubles]:
        for chosen in _slices(self.width, self.count):
            part = self.features[:, chosen]
            part = part if self.rows is None else part[self.rows]
            yield (part.astype(np.float64) - self.mean[chosen]) / self.scale[chosen]


@dataclass(frozen=True)
class _Turned:
    """Standardised features in the basis of the right singular vectors, z [n, r]."""

    squares: Doubles  # [r]: squared singular values
    moments: Doubles  # [r, classes]: products with the centred targets
    pieces: Callable[[], Iterable[tuple[slice, Doubles]]]  # of z
    back: Callable[[Doubles], Doubles]  # weights of z [r, classes] → of the features [d, classes]


def _tall(x: _Standardised, y: Doubles) -> _Turned:
    gram, moments = np.zeros((x.width, x.width)), np.zeros((x.width, y.shape[1]))
    for chosen, part in x.examples():
        gram += part.T @ part
        moments += part.T @ y[chosen]
    squares, vectors = _eigen(gram)

    def pieces() -> Iterator[tuple[slice, Doubles]]:
        for chosen, part in x.examples():
            yield chosen, part @ vectors

    return _Turned(squares, vectors.T @ moments, pieces, lambda weights: vectors @ weights)


def _wide(x: _Standardised, y: Doubles) -> _Turned:
    gram = np.zeros((x.count, x.count))
    for part in x.columns():
        gram += part @ part.T
    squares, vectors = _eigen(gram)
    z = vectors * np.sqrt(squares)

    def back(weights: Doubles) -> Doubles:
        combined = (vectors / np.sqrt(squares)) @ weights
        return np.concatenate([part.T @ combined for part in x.columns()])

    return _Turned(squares, z.T @ y, lambda: [(slice(0, x.count), z)], back)


def _eigen(gram: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues [r] and eigenvectors [., r] of the smaller Gram matrix, but for those of noise.

    About ten times as fast as scikit-learn's RidgeClassifierCV.
    """
    values, vectors = np.linalg.eigh(gram)
    kept = values > values[-1] * 1e-9
    return values[kept], vectors[:, kept]


def _slices(count: int, width: int) -> Iterator[slice]:
    step = max(1, _PIECE // width)
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))
