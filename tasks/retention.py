"""What fine-tuning did to what the backbone knew, and the way between start and end.

`tasks.engine.blend` measures; this says what is measured and what it means, in numbers and words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks import files

if TYPE_CHECKING:
    from tasks.labelling import Labels
    from tasks.params import RetentionParams

DIGITS = 6  # of figures in the record
CERTAIN = 0.05  # p below which one set of weights is called better than another

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sight:
    """What a backbone makes of some probe examples."""

    features: Floats  # [n, d], below the head
    predictions: Floats  # [n, m], log-probabilities of its *old* head


@dataclass(frozen=True)
class Knowledge:
    """What a backbone still knows, against what it knew before."""

    examples: int  # probe examples
    agreement: float | None  # share whose most probable old class is the same as before
    kl: float | None  # mean divergence of the old predictions now from those before, in nats
    knn_before: float  # leave-one-out accuracy of the nearest neighbours among the features
    knn_after: float
    overlap: float  # share of an example's nearest neighbours that are the same as before

    @property
    def drop(self) -> float:
        """Skill lost: leave-one-out accuracy of the nearest neighbours before less after."""
        return round(self.knn_before - self.knn_after, DIGITS)


@dataclass(frozen=True)
class Blend:
    """One point between start (alpha 0) and end (alpha 1), judged on the validation examples."""

    alpha: float
    accuracy: float
    loss: float  # mean negative log-likelihood
    agreement: float | None  # with the old predictions of the start; None: it had no head
    gained: int  # examples that it alone has right, and not the end
    lost: int  # examples that the end alone has right


@dataclass(frozen=True)
class Retention:
    """The record of a training: what its weights know, and the curve back to the start."""

    knowledge: Knowledge | None  # of the weights that were kept; None: nothing moved
    curve: list[Blend] = field(default_factory=list)  # by alpha
    best: float = 1.0  # alpha of the highest validation accuracy; of equals that of the lowest loss
    used: float = 1.0  # alpha of the weights that were kept
    examples: int = 0  # validation examples that the curve was judged on

    @classmethod
    def read(cls, path: Path) -> Retention:
        value = files.read_json(path)
        known = value.pop("knowledge")
        curve = [Blend(**point) for point in value.pop("curve")]
        return cls(knowledge=known and Knowledge(**known), curve=curve, **value)

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))

    def at(self, alpha: float) -> Blend:
        return next(point for point in self.curve if point.alpha == alpha)


def compare(before: Sight, after: Sight, targets: Labels) -> Knowledge:
    """What is left of `before`; `targets`: the labels by which skill is judged."""
    from tasks.select import knn_accuracy

    old, new = before.predictions.astype(np.float64), after.predictions.astype(np.float64)
    kl = float((np.exp(old) * (old - new)).sum(axis=1).mean())
    return Knowledge(
        examples=len(targets),
        agreement=agreement(before, after),
        kl=round(kl, DIGITS) if _says(before) else None,
        knn_before=round(knn_accuracy(before.features, targets), DIGITS),
        knn_after=round(knn_accuracy(after.features, targets), DIGITS),
        overlap=round(overlap(before.features, after.features), DIGITS),
    )


def agreement(before: Sight, after: Sight) -> float | None:
    """The share of old predictions with the same most probable class; None without an old head."""
    if not _says(before):
        return None
    old, new = before.predictions.argmax(axis=1), after.predictions.argmax(axis=1)
    return round(float((old == new).mean()), DIGITS)


def _says(sight: Sight) -> bool:
    """Whether the backbone came with a head of its own, which has several outputs."""
    return sight.predictions.shape[1] > 1


def overlap(before: Floats, after: Floats) -> float:
    """Mean share of an example's nearest neighbours by cosine that two sets of features share.

    The mutual nearest-neighbour measure of Huh et al. 2024 (arXiv:2405.07987); 1 for equal sets.
    """
    from tasks.select import neighbours

    pairs = zip(neighbours(before)[1], neighbours(after)[1], strict=True)
    return float(np.mean([len(np.intersect1d(one, other)) / len(one) for one, other in pairs]))


def best(curve: list[Blend]) -> float:
    """The alpha of the highest accuracy, of equals the one of the lowest loss."""
    return max(curve, key=lambda point: (point.accuracy, -point.loss)).alpha


def judge(
    record: Retention,
    known: Knowledge | None,
    params: RetentionParams,
    many: str = "examples",
    several: bool = False,
    old_head: bool = True,
) -> dict[str, Any]:
    """What metrics and report say, JSON-ready: `figures`, `knowledge` and `curve` in words.

    `known`: of the probe examples that were asked; None when nothing moved. `many`: what the
    problem calls them; `several`: whether one may have several labels; `old_head`: whether the
    backbone came with a head that says something.
    """
    return {
        "figures": _figures(known, params.max_drop, old_head),
        "knowledge": _told(known, params, many, several),
        "curve": _verdict(record) if record.curve else None,
    }


def _figures(known: Knowledge | None, max_drop: float | None, old_head: bool) -> dict[str, float]:
    """Flat `retention.*` metrics; `within_budget` (1 or 0) is there when a budget is set."""
    if known is None:
        flat = {"overlap": 1.0, "drop": 0.0}
        if old_head:  # else there are no old predictions to agree with
            flat |= {"agreement": 1.0, "kl": 0.0}
    else:
        names = ("agreement", "kl", "overlap", "knn_before", "knn_after", "drop")
        found = {name: getattr(known, name) for name in names}
        flat = {name: value for name, value in found.items() if value is not None}
    if max_drop is not None:
        flat["within_budget"] = int(flat["drop"] <= max_drop)
    return {f"retention.{name}": value for name, value in flat.items()}


def _told(known: Knowledge | None, params: RetentionParams, many: str, several: bool) -> str:
    """What the backbone still knows of what it knew."""
    if known is None:
        return "Nothing below the head has moved, so the backbone knows exactly what it knew."
    asked = f"validation {many}" if params.own_probe is None else f"{many} of {params.own_probe}"
    change = f"{-100 * known.drop:+.1f}".replace("-", "−")
    text = f"Of {known.examples:,} {asked}, "
    if known.agreement is not None:
        text += f"the backbone’s old head gives {_percent(known.agreement)} the same answer as "
        text += "before, and "
    alike = "have all their labels and no other" if several else "are of their class"
    text += (
        f"their nearest neighbours {alike} {_percent(known.knn_after)} of the time, "
        f"{_percent(known.knn_before)} before training ({change} points)"
    )
    if params.max_drop is None:
        return f"{text}."
    if known.drop <= params.max_drop:
        return f"{text}: within the budget of a drop of {100 * params.max_drop:g} points."
    return (
        f"{text}: beyond the budget of a drop of {100 * params.max_drop:g} points. A lower "
        "freeze.learning_rate_fraction, a higher thaw line or train.average_weights: "
        "blend_with_start keep more."
    )


def _verdict(record: Retention) -> str:
    """Whether weights between start and end are, or would have been, better than the end."""
    end, top = record.at(1.0), record.at(record.best)
    right = f"right on {_percent(top.accuracy)} of {record.examples:,} validation examples"
    if record.best == 1.0:
        return f"No point between start and end is better than the fine-tuned weights: {right}."
    name = "the start" if top.alpha == 0 else f"alpha {top.alpha:g}"
    sure = "" if _p_value(top) < CERTAIN else ", which does not tell the two apart"
    against = (
        f"{right}, the end on {_percent(end.accuracy)} ({top.gained:,} only at {name}, "
        f"{top.lost:,} only at the end{sure})"
    )
    if record.used == record.best:
        return f"The weights that were kept lie at {name}: {against}."
    return (
        f"On validation, {name} is ahead of the fine-tuned weights: {against}. "
        "train.average_weights: blend_with_start keeps that point."
    )


def _p_value(point: Blend) -> float:
    """Exact McNemar, two-sided (McNemar 1947); that the point was chosen is not allowed for."""
    from scipy.stats import binomtest

    different = point.gained + point.lost
    return float(binomtest(point.gained, different).pvalue) if different else 1.0


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
