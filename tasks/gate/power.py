"""How many examples decide between two models, and what gain a given number of them would prove."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.paired import Pairs

POWER = 0.8  # chance that the examples asked for decide
CERTAIN = 0.99  # that a promoted model does not lose more than it may
USUAL = 0.02  # standard deviation of the true gains of challengers, around 0
MOST = 10**9  # examples that anybody would ask for


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
    return max(1, math.ceil(high * pairs.design) - pairs.all)


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


def _normal(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))
