"""Whether a changed data set is worth another training: `skip` or `retrain`, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tasks import changes
from tasks.changes import Changes
from tasks.params import RetrainParams

SKIP: Literal["skip"] = "skip"
RETRAIN: Literal["retrain"] = "retrain"


@dataclass(frozen=True)
class Decision:
    """What to do, with every reason for it, the strongest first."""

    verdict: Literal["skip", "retrain"]
    reasons: list[str]
    notes: list[str]  # what to know, whatever is done
    seconds: float | None  # that retraining is expected to take; None: it never ran here

    @property
    def sentence(self) -> str:
        cost = "" if self.seconds is None else f" (about {self.seconds:,.0f} s)"
        advice = f"Retrain{cost}" if self.verdict == RETRAIN else "Skip"
        return f"{advice}: {'; '.join(self.reasons)}."

    def lines(self) -> list[str]:
        return [self.sentence, *self.notes]

    def as_json(self) -> dict[str, Any]:
        return {"sentence": self.sentence, **asdict(self)}


def decide(found: Changes, params: RetrainParams, seconds: float | None = None) -> Decision:
    """Retrain for another set of classes, for enough changed examples, or for a shift.

    Examples count where training or validation sees them; removed ones too, as they may have been
    wrong, or must be forgotten. `seconds` is what retraining is expected to take.
    """
    notes = [] if found.test["same"] else [changes.test_sentence(found.test)]
    reasons = [
        f"{what} class {name!r}"
        for what, names in (("new", found.new_classes), ("lost", found.lost_classes))
        for name in names
    ]
    changed = sum(found.to_learn.values())
    told = ", ".join(f"{count:,} {kind}" for kind, count in found.to_learn.items() if count)
    enough = changed >= params.min_examples and found.share >= params.min_new
    if enough:
        reasons.append(f"{told}: {found.share:.1%} of the examples to learn from")
    if found.shifted and params.on_shift:
        shifts = [each.sentence.rstrip(".") for each in found.shifts if each.differs]
        reasons += [each[:1].lower() + each[1:] for each in shifts]
    if reasons:
        return Decision(RETRAIN, reasons, notes, seconds)
    return Decision(SKIP, [_too_little(found, changed, told, params)], notes, seconds)


def _too_little(found: Changes, changed: int, told: str, params: RetrainParams) -> str:
    if found.none:
        return "nothing new"
    if not changed:
        return "nothing that training or validation would see changed"
    limits = f"retrain.min_new {params.min_new:.1%}, retrain.min_examples {params.min_examples:,}"
    return f"only {told}: {found.share:.1%} of the examples to learn from ({limits})"
