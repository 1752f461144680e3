"""The gate: may a challenger take the champion's place? A pure function of what both bring.

`judge` knows no server and starts nothing; `tasks.gate.fresh` runs the packaged model in a process
of its own, and `tasks.gate.collect` gathers the evidence of a project. Why the rules are as they
are: `docs/decisions/0022-gate.md`.
"""

from __future__ import annotations

from tasks.gate import accuracy, limits, subsets
from tasks.gate.evidence import Evidence, Loaded, Shared, shared
from tasks.gate.verdict import Decision, Rule, Verdict
from tasks.params import Params, PromoteParams

__all__ = ["Evidence", "GateParams", "Loaded", "Rule", "Verdict", "judge"]


class GateParams(PromoteParams):
    """The section `promote`, with what other sections say of a model's limits."""

    max_drop: float | None = None  # `retention.max_drop`

    @classmethod
    def of(cls, params: Params) -> GateParams:
        return cls(**params.promote.model_dump(), max_drop=params.retention.max_drop)


def judge(challenger: Evidence, champion: Evidence | None, rules: GateParams) -> Verdict:
    """Judge a challenger against the champion, or where there is none against the commonest class.

    One failed rule keeps the champion; with none failed and all proved it is promoted. Raises
    `DataError` when the two were judged on different examples or by different labels.
    """
    test = shared(challenger.predictions, champion.predictions if champion else None)
    found = [
        _another(challenger, champion),
        _same_test(test),
        *accuracy.judge(challenger, champion, test, rules),
        *(subsets.judge(test, rules, challenger.several) if champion else subsets.unjudged()),
        *limits.judge(challenger, rules, rules.max_drop),
    ]
    failed = [rule for rule in found if rule.state == "failed"]
    open_ = [rule for rule in found if rule.state == "undecided"]
    decision: Decision = "keep" if failed else "undecided" if open_ else "promote"
    asked = [rule.needed for rule in open_ if rule.needed is not None]
    more = max(asked) if decision == "undecided" and len(asked) == len(open_) else None
    if failed:
        stays = "Keep the champion." if champion else "Not good enough for a first champion."
        told = f"{stays} {failed[0].sentence}"
    elif open_:
        how = "" if more is None else f": about {more:,} more examples would decide"
        told = f"Undecided{how}. {open_[0].sentence}"
    else:
        told = f"Promote. {found[2].sentence}"
    against = champion.digest if champion else None
    return Verdict(decision, more, challenger.digest, against, told, found)


def _another(challenger: Evidence, champion: Evidence | None) -> Rule:
    if champion and champion.digest == challenger.digest:
        return Rule("another", "failed", f"{challenger.name} is the champion.")
    return Rule("another", "passed", f"{challenger.name} is not the champion.")


def _same_test(test: Shared) -> Rule:
    new = 0 if test.newest is None else int(test.newest.sum())
    since = f", {new:,} of them newer than the champion" if new else ""
    missing = f"; {test.left_out:,} more were judged by one of them" if test.left_out else ""
    told = f"Both were judged on the same {len(test.examples):,} test examples{since}{missing}."
    numbers = {"examples": len(test.examples), "left_out": test.left_out, "newest": new}
    return Rule("same_test", "passed", told, numbers)
