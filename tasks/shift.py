"""Whether new examples are like the old ones: by features of a frozen backbone, and by what a model
says of them. Both tests hold for any number of features, and for few examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks import data_quality
from tasks.metrics import Floats, Interval

LIMIT = 500  # examples of either sample that are looked at
LEAST = 10  # of a sample that is judged
LEAST_AUC = 0.6  # from which on a difference of features matters, however sure it is
LEAST_DISTANCE = 0.15  # and one of predictions, as the largest gap of two distribution functions
PERMUTATIONS = 999


@dataclass(frozen=True)
class Shift:
    """How unlike the old examples the new ones are."""

    of: str  # features | predictions
    examples: dict[str, int]  # `old` and `new` ones that were compared
    p_value: float  # of all its tests together
    size: Interval | float  # features: AUC of a classifier old | new; predictions: KS distance
    differs: bool  # surely, and by enough to matter
    sentence: str


def of_features(
    old: npt.NDArray[np.float32],
    new: npt.NDArray[np.float32],
    level: float,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> Shift | None:
    """Whether a classifier tells new features [m, d] from old ones [n, d]; None: too few.

    A ridge classifier's leave-one-out scores, their area under the curve, and its p-value among
    random divisions of the same examples: exact at any d (Lopez-Paz and Oquab, ICLR 2017,
    arXiv:1610.06545; Kim, Ramdas, Singh and Wasserman, Annals of Statistics 2021). The interval is
    that of DeLong, DeLong and Clarke-Pearson (Biometrics 1988).
    """
    random = np.random.default_rng(seed)
    old, new = _drawn(old, random), _drawn(new, random)
    if min(len(old), len(new)) < LEAST:
        return None
    is_new = np.arange(len(old) + len(new)) >= len(old)
    divisions = np.stack([is_new, *(random.permutation(is_new) for _ in range(permutations))], 1)
    scores = _left_out(np.concatenate([old, new]).astype(np.float64), divisions)
    areas = _areas(scores, divisions)
    p_value = float((1 + (areas[1:] >= areas[0]).sum()) / (1 + permutations))
    size = _interval(float(areas[0]), scores[~is_new, 0], scores[is_new, 0])
    differs = p_value <= level and size.value >= LEAST_AUC
    told = f"AUC {size.value:.2f} ({size.low:.2f} to {size.high:.2f}), p = {p_value:.2g}"
    what = "differ from" if differs else "are like"
    return Shift(
        of="features",
        examples={"old": len(old), "new": len(new)},
        p_value=p_value,
        size=size,
        differs=differs,
        sentence=f"New examples {what} the old ones for the backbone ({told}).",
    )


def of_predictions(old: Floats, new: Floats, level: float, classes: list[str]) -> Shift | None:
    """Whether a model says the same of new examples as of old ones, as class probabilities
    [n, classes], none of them seen in training; None: too few. See `data_quality.drift`."""
    if min(len(old), len(new)) < LEAST:
        return None
    found = data_quality.drift(old, new)
    differs = found.p_value <= level and found.distance >= LEAST_DISTANCE
    told = f"most in {classes[found.target]!r}: distance {found.distance:.2f}"
    what = "differ" if differs else "do not differ"
    return Shift(
        of="predictions",
        examples={"old": len(old), "new": len(new)},
        p_value=found.p_value,
        size=found.distance,
        differs=differs,
        sentence=f"The champion's answers to new examples {what} from those to its test examples "
        f"({told}, p = {found.p_value:.2g}).",
    )


def _drawn(
    features: npt.NDArray[np.float32], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    chosen = np.sort(random.permutation(len(features))[:LIMIT])  # sorted: they lie in a mapped file
    return np.asarray(features[chosen], np.float32)


def _left_out(x: Floats, divisions: npt.NDArray[np.bool_]) -> Floats:
    """Scores [n, divisions] of each example by the ridge classifiers that are fitted without it."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    kernel = x @ x.T / x.shape[1]
    hat = np.linalg.solve(kernel + np.eye(len(x)), kernel) + 1 / len(x)  # the last: intercept
    y = divisions.astype(np.float64)
    scores: Floats = y - (y - hat @ y) / (1 - np.diag(hat))[:, None]
    return scores


def _areas(scores: Floats, divisions: npt.NDArray[np.bool_]) -> Floats:
    """The area under the curve of each column of scores."""
    from scipy.stats import rankdata

    ranks: Floats = rankdata(scores, axis=0)
    count = divisions.sum(0)
    found: Floats = ((ranks * divisions).sum(0) - count * (count + 1) / 2) / (
        count * (len(scores) - count)
    )
    return found


def _interval(area: float, old: Floats, new: Floats) -> Interval:
    """95 %, from the share of the other sample that each example is on the right side of."""
    below = np.searchsorted(np.sort(old), new) / len(old)
    above = 1 - np.searchsorted(np.sort(new), old, side="right") / len(new)
    spread = 1.96 * math.sqrt(below.var(ddof=1) / len(new) + above.var(ddof=1) / len(old))
    return Interval(area, max(0.0, area - spread), min(1.0, area + spread))
