"""What the gate says: a state for each rule, with its numbers, and what follows from all."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tasks import evidence
from tasks.params import PromoteParams

State = Literal["passed", "failed", "undecided", "skipped"]
Decision = Literal["promote", "keep", "undecided"]
# The rules whose doubt `promote_if_not_worse` does not pass over.
NOT_WORSE = ("not_worse", "frozen_test", "classes", "slices")


@dataclass(frozen=True)
class Rule:
    """One rule and what came of it; `undecided`: these examples are too few to tell."""

    name: str
    state: State
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    needed: int | None = None  # more examples that would decide what is undecided, where known


@dataclass(frozen=True)
class Verdict:
    """The gate's word on a challenger: promote it, keep the champion, or too early to say."""

    decision: Decision
    # More examples that would decide, four times in five; None: decided, or nobody can tell.
    needed: int | None
    challenger: str  # digest
    champion: str | None  # digest
    sentence: str
    rules: list[Rule]

    def rule(self, name: str) -> Rule:
        return next(rule for rule in self.rules if rule.name == name)

    def action(self, rules: PromoteParams) -> Literal["promote", "keep", "ask"]:
        """What to do now, by what the parameters say of doubt and of a person's approval."""
        decision: str = self.decision
        if decision == "undecided":
            decision = rules.when_undecided
            if decision == "promote_if_not_worse":
                open_ = [rule for rule in self.rules if rule.state == "undecided"]
                decision = "keep" if any(r.name in NOT_WORSE for r in open_) else "promote"
        if decision == "promote":
            return "ask" if rules.approve else "promote"
        return "ask" if decision == "ask" else "keep"

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = evidence.plain(asdict(self))
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Verdict:
        return cls(**{**value, "rules": [Rule(**rule) for rule in value["rules"]]})

    def tags(self) -> dict[str, str]:
        """For a run or a version in MLflow: the decision and each rule in words."""
        rules = {f"gate.{rule.name}": f"{rule.state}: {rule.sentence}" for rule in self.rules}
        return {"gate.decision": self.decision, "gate.sentence": self.sentence, **rules}
