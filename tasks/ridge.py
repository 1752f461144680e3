"""Ridge classification in closed form, with exact leave-one-out scores.

Leave-one-out residuals follow from the fit on all examples and their leverages, without refitting
(Allen 1974; Golub, Heath and Wahba 1979); where groups are left out, from their blocks of the hat
matrix. Features are read in pieces, so they may lie in a mapped file, and more examples take no
more memory, but for their scores.
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
    left_out: Doubles  # [n, classes]: each example's scores by the fit without it, and its group
    weight: Doubles  # [classes, d], of the features as they came
    bias: Doubles  # [classes]


def fit(
    features: Features,
    targets: Labels,
    classes: int,
    rows: Ints | None = None,
    groups: Ints | None = None,
) -> Ridge:
    """Fit members [n, classes] on standardised features; the strength has the best accuracy.

    Of several labels, it has the least squared error: of many, hardly an answer is right as a
    whole. The targets (`tasks.labelling`) are those of `rows` of the features, or of all, and so
    are `groups` [n] of examples that are left out together, such as near-duplicates.
    """
    if groups is not None:
        order = np.argsort(groups, kind="stable")
        rows, targets = order if rows is None else rows[order], targets[order]
        groups = groups[order]
    x = _Standardised(features, rows, groups)
    y, several = labelling.members(targets, classes), targets.ndim == 2
    centre = y.mean(0)
    turned = (_wide if x.width > x.count else _tall)(x, y - centre)

    def left_out(chosen: slice, z: Doubles, strength: float) -> Doubles:
        shrunk = 1 / (turned.squares + strength)
        residual = y[chosen] - centre - z @ (turned.moments * shrunk[:, None])
        leverage = z**2 @ shrunk + 1 / x.count  # the last term is the intercept's
        without = residual / (1 - leverage)[:, None]
        for group in x.groups_in(chosen):
            hat = (z[group] * shrunk) @ z[group].T + 1 / x.count
            without[group] = np.linalg.solve(np.eye(len(hat)) - hat, residual[group])
        return y[chosen] - without

    right, missed = np.zeros(len(_STRENGTHS)), np.zeros(len(_STRENGTHS))
    for chosen, z in turned.pieces():
        for i, strength in enumerate(_STRENGTHS):
            scores = left_out(chosen, z, strength)
            said = labelling.answers(scores, several)
            right[i] += labelling.right(targets[chosen], said).sum()
            missed[i] += ((y[chosen] - scores) ** 2).sum() if several else 0
    best = int((-missed if several else right).argmax())  # the first of equals
    scores = np.concatenate([left_out(*piece, _STRENGTHS[best]) for piece in turned.pieces()])
    if groups is not None:
        scores[order] = scores.copy()
    shrunk = turned.moments / (turned.squares + _STRENGTHS[best])[:, None]
    weight = turned.back(shrunk).T / x.scale
    return Ridge(float(right[best] / x.count), scores, weight, centre - weight @ x.mean)


class _Standardised:
    """Features [count, width] in doubles of mean 0 and spread 1, piece by piece.

    `groups` [count], in order, are never cut in two.
    """

    def __init__(self, features: Features, rows: Ints | None, groups: Ints | None) -> None:
        self.features, self.rows = features, rows
        self.count = len(features) if rows is None else len(rows)
        self.width = features.shape[1]
        own = np.arange(self.count) if groups is None else groups
        self.starts, self.sizes = np.unique(own, return_index=True, return_counts=True)[1:]
        self.mean: Doubles = sum(part.sum(0) for _, part in self.pieces()) / self.count
        squares = sum(((part - self.mean) ** 2).sum(0) for _, part in self.pieces())
        self.scale: Doubles = np.sqrt(squares / self.count) + 1e-6

    def pieces(self) -> Iterator[tuple[slice, Doubles]]:
        """Some rows at a time, as they came."""
        wanted = np.arange(0, self.count, max(1, _PIECE // self.width))
        after = np.searchsorted(self.starts, wanted)
        begins = np.unique(self.starts[after[after < len(self.starts)]])
        for chosen in map(slice, begins, [*begins[1:], self.count]):
            rows = chosen if self.rows is None else self.rows[chosen]
            yield chosen, self.features[rows].astype(np.float64)

    def groups_in(self, chosen: slice) -> list[slice]:
        """Those of several examples, as places within a piece."""
        several = (self.sizes > 1) & (self.sizes < self.count)  # without all, there is no fit
        inside = (self.starts >= chosen.start) & (self.starts < chosen.stop)
        found = np.flatnonzero(several & inside)
        begins = self.starts[found] - chosen.start
        return [slice(*ends) for ends in zip(begins, begins + self.sizes[found], strict=True)]

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
