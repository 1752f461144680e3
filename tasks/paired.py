"""Two models on the same examples: what their different answers prove.

Everything follows from three counts: examples that the one in question alone has right (gained),
that the other alone has right (lost), and all. Where examples come in groups, which are no separate
evidence, the counts are divided by the design effect (Rao and Scott, Biometrics 1992).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tasks import labelling
from tasks.labelling import Floats, Ints, Labels
from tasks.metrics import Interval

Verdict = Literal["better", "worse", "not distinguishable"]

HALVINGS = 24  # of a range of 1 or 2: to a hundred-thousandth of a point


@dataclass(frozen=True)
class Comparison:
    """A model against a baseline on the same examples."""

    difference: Interval  # accuracy of the model less that of the baseline
    only_model_right: int
    only_baseline_right: int
    p_value: float  # exact McNemar, two-sided
    verdict: Verdict


@dataclass(frozen=True)
class Pairs:
    """Answers of two models, as counts of independent examples."""

    gained: float
    lost: float
    examples: float
    design: float = 1.0  # examples that count as one, and would among more like these
    few: float = 1.0  # by how much fewer they count besides, as few groups tell little of `design`

    @classmethod
    def of(cls, steps: Ints, groups: Ints, inflation: float = 1.0) -> Pairs:
        """Of `steps` [n], 1 where gained, -1 where lost, else 0, and the group [n] of each.

        `inflation`: what widens the variance besides groups.
        """
        design, few = inflation * design_effect(steps, groups), few_groups(groups)
        gained, lost = float((steps > 0).sum()), float((steps < 0).sum())
        one = design * few
        return cls(gained / one, lost / one, len(steps) / one, design, few)

    @property
    def all(self) -> int:
        """The examples that there are."""
        return round(self.examples * self.design * self.few)

    @property
    def gain(self) -> float:
        """Accuracy of the challenger less that of the champion."""
        return (self.gained - self.lost) / self.examples

    @property
    def apart(self) -> float:
        """Share of examples on which one alone is right; never quite 0, which no sample proves."""
        return max(self.gained + self.lost, 1.0) / self.examples


def compare(
    labels: Labels, model: Labels, baseline: Labels, groups: Ints, confidence: float
) -> Comparison:
    """Is a model's accuracy distinguishable from a baseline's on the same examples?

    Only when both agree on it: the interval of the difference leaves out 0, and the exact McNemar
    test rejects at 1 - `confidence`. `groups` [n]: the group of each example.
    """
    right, other = (labelling.right(labels, said) for said in (model, baseline))
    steps = right.astype(np.int64) - other
    pairs = Pairs.of(steps, groups)
    [[low, high]] = intervals([pairs], confidence).tolist()
    fewer, more = sorted((pairs.gained, pairs.lost))
    p_value = min(1.0, 2 * float(p_values(more, fewer)))
    verdict: Verdict = "not distinguishable"
    if p_value < 1 - confidence:
        if low > 0:
            verdict = "better"
        elif high < 0:
            verdict = "worse"
    gained, lost = int((steps > 0).sum()), int((steps < 0).sum())
    return Comparison(Interval(pairs.gain, low, high), gained, lost, p_value, verdict)


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


def few_groups(groups: Ints) -> float:
    """By how much a variance that few groups tell is widened: Student's t in place of the normal.

    Its degrees of freedom are those of so many groups of one size as weigh as much (Kish 1965): a
    few large groups beside many small ones are few.
    """
    from scipy.special import ndtri, stdtrit

    sizes = np.bincount(groups).astype(np.float64)
    if sizes.max() <= 1:
        return 1.0
    freedom = max(sizes.sum() ** 2 / (sizes**2).sum() - 1, 1.0)
    return float((stdtrit(freedom, 0.975) / ndtri(0.975)) ** 2)


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


def _score(value: Floats, gained: Floats, lost: Floats, examples: Floats) -> Floats:
    """Tango's score statistic of the hypothesis that the gain is `value`; falls with it."""
    b = (2 * examples - gained + lost) * value - gained - lost
    c = -lost * value * (1 - value)
    losing = (np.sqrt(np.maximum(b * b - 8 * examples * c, 0)) - b) / (4 * examples)
    variance = examples * np.maximum(2 * losing + value * (1 - value), 1e-12)
    return np.asarray((gained - lost - examples * value) / np.sqrt(variance))
