"""Two models on the same examples: what their different answers prove, and how many would.

Everything follows from three counts: examples that the challenger alone has right (gained), that
the champion alone has right (lost), and all. Where examples come in groups, which are no separate
evidence, the counts are divided by the design effect (Rao and Scott, Biometrics 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.metrics import Floats, Ints

POWER = 0.8  # chance that the examples asked for decide
CERTAIN = 0.99  # that a promoted model does not lose more than it may
USUAL = 0.02  # standard deviation of the true gains of challengers, around 0
MOST = 10**9  # examples that anybody would ask for
HALVINGS = 24  # of a range of 1 or 2: to a hundred-thousandth of a point


@dataclass(frozen=True)
class Pairs:
    """Answers of two models, as counts of independent examples."""

    gained: float
    lost: float
    examples: float
    design: float = 1.0  # examples that count as one

    @classmethod
    def of(cls, steps: Ints, groups: Ints, inflation: float = 1.0) -> Pairs:
        """Of `steps` [n], 1 where gained, -1 where lost, else 0, and the group [n] of each.

        `inflation`: what widens the variance besides groups.
        """
        design = inflation * design_effect(steps, groups)
        gained, lost = float((steps > 0).sum()), float((steps < 0).sum())
        return cls(gained / design, lost / design, len(steps) / design, design)

    @property
    def gain(self) -> float:
        """Accuracy of the challenger less that of the champion."""
        return (self.gained - self.lost) / self.examples

    @property
    def apart(self) -> float:
        """Share of examples on which one alone is right; never quite 0, which no sample proves."""
        return max(self.gained + self.lost, 1.0) / self.examples


@dataclass(frozen=True)
class Claims:
    """What is to be proved: the gain is above 0, above -`max_loss`, or below `min_gain`."""

    confidence: float
    min_gain: float
    max_loss: float

    def thresholds(self, apart: float, examples: float) -> tuple[float, float]:
        """The estimates of the gain below which it is kept, and above which it is promoted."""
        sure, certain = _normal(0.5 + self.confidence / 2), _normal(CERTAIN)
        error = math.sqrt(apart / examples)
        # An exact test stops at whole counts: 1 / n is Edwards' correction of McNemar's test.
        promoted = max(sure * error + 1 / examples, certain * error - self.max_loss)
        return self.min_gain - sure * error, promoted


class NotWorse(Claims):
    """What is to be proved instead: the gain is above -`max_loss`, or below 0."""

    def thresholds(self, apart: float, examples: float) -> tuple[float, float]:
        sure, certain = _normal(0.5 + self.confidence / 2), _normal(CERTAIN)
        error = math.sqrt(apart / examples)
        return -sure * error - 1 / examples, certain * error - self.max_loss


def design_effect(steps: Ints, groups: Ints) -> float:
    """The variance of a mean over groups against that over as many separate examples; at least 1.

    Where all answers are the same, nothing tells how groups agree, and each counts as one.
    """
    sizes = np.bincount(groups)
    sizes_used = sizes[sizes > 0]
    count = len(sizes_used)
    if count == len(steps):
        return 1.0
    mean = steps.mean()
    alone = float(((steps - mean) ** 2).sum())
    if alone == 0 or count == 1:
        return len(steps) / count
    sums = np.bincount(groups, weights=steps)[sizes > 0]
    together = float(((sums - mean * sizes_used) ** 2).sum()) * count / (count - 1)
    return max(1.0, together / alone)


def p_values(gained: Any, lost: Any) -> Floats:
    """One-sided exact McNemar test that the gain is above 0 (McNemar 1947).

    The binomial tail as an incomplete beta function, which counts need not be whole for.
    """
    from scipy.special import betainc

    gained, lost = np.asarray(gained, np.float64), np.asarray(lost, np.float64)
    tail = betainc(np.maximum(gained, 1e-12), lost + 1, 0.5)
    return np.where(gained > 0, tail, 1.0)


def holm(p: Floats) -> Floats:
    """p-values [k] that hold for all k tests at once (Holm 1979)."""
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty_like(p)
    found[order] = np.minimum(raised, 1.0)
    return found


def intervals(pairs: Sequence[Pairs], confidence: float | Sequence[float]) -> Floats:
    """Two-sided score intervals [k, 2] of each gain (Tango, Statistics in Medicine 1998).

    At one confidence, or each at its own. Sound for few examples, and where no answer differs.
    """
    from scipy.special import ndtri

    z = ndtri(0.5 + np.asarray(confidence) / 2) * np.array([[1], [-1]])  # of low and high ends
    counts = np.array([[each.gained, each.lost, each.examples] for each in pairs]).T
    gain = (counts[0] - counts[1]) / counts[2]
    one = np.ones_like(gain)
    below, above = np.array([-one, gain]), np.array([gain, one])
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        beyond = _score(middle, *counts) <= z
        below, above = np.where(beyond, below, middle), np.where(beyond, middle, above)
    return ((below + above) / 2).T


def needed(pairs: Pairs, claims: Claims) -> int:
    """How many more examples like these decide with the chance `POWER`.

    The chance is that of the prediction from what was seen and from `USUAL`, as the gain that few
    examples show is mostly error (predictive power: Spiegelhalter, Freedman and Blackburn 1986).
    """
    low, high = pairs.examples, 2 * pairs.examples
    while _foreseen(pairs, claims, high) < POWER and high < MOST:
        low, high = high, 2 * high
    while high - low > 0.001 * high:
        middle = (low + high) / 2
        if _foreseen(pairs, claims, middle) < POWER:
            low = middle
        else:
            high = middle
    return max(1, math.ceil((high - pairs.examples) * pairs.design))


def detectable(pairs: Pairs, claims: Claims, power: float = POWER) -> float:
    """The smallest true gain that is promoted with the chance `power`."""
    _, promoted = claims.thresholds(pairs.apart, pairs.examples)
    # The root of gain = promoted + z √((apart - gain²) / n).
    k = _normal(power) ** 2 / pairs.examples
    inside = promoted**2 - (1 + k) * (promoted**2 - k * pairs.apart)
    return (promoted + math.sqrt(max(inside, 0.0))) / (1 + k)


def _foreseen(pairs: Pairs, claims: Claims, total: float) -> float:
    """The chance that a test on `total` examples, these among them, decides."""
    from scipy.special import ndtr

    kept, promoted = claims.thresholds(pairs.apart, total)
    if kept >= promoted:
        return 1.0
    seen, more = pairs.examples, total - pairs.examples
    variance = max(pairs.apart - pairs.gain**2, 1 / seen**2)
    belief = 1 / (1 / USUAL**2 + seen / variance)  # variance of the true gain, by what was seen
    true = belief * pairs.gain * seen / variance
    mean = (seen * pairs.gain + more * true) / total
    spread = more / total * math.sqrt(belief + variance / more)
    return float(ndtr((kept - mean) / spread) + ndtr((mean - promoted) / spread))


def _score(value: Floats, gained: Floats, lost: Floats, examples: Floats) -> Floats:
    """Tango's score statistic of the hypothesis that the gain is `value`; falls with it."""
    b = (2 * examples - gained + lost) * value - gained - lost
    c = -lost * value * (1 - value)
    losing = (np.sqrt(np.maximum(b * b - 8 * examples * c, 0)) - b) / (4 * examples)
    variance = examples * np.maximum(2 * losing + value * (1 - value), 1e-12)
    return np.asarray((gained - lost - examples * value) / np.sqrt(variance))


def _normal(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))
