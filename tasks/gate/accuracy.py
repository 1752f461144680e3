"""The rules on accuracy: surely better, surely not much worse, and not surely a trifle.

- `better`: exact McNemar, at `confidence` as in `thawline compare`; else undecided.
- `not_worse`: with 99 % certainty no more than `max_loss` is lost (a score test of non-inferiority,
  Tango 1998); else undecided. It keeps its word where `better` alone, on few examples on which the
  models often differ, would let a much worse one through.
- `frozen_test`: where newer examples are judged too, the same of the champion's test set alone, at
  which data that was damaged since cannot show a gain; it fails where the model is surely worse.
- `min_gain`: fails where the gain surely is below `min_gain`, be it because the model is worse. A
  gain between 0 and there may be called either way, so enough examples always decide.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from tasks import paired
from tasks.gate import power
from tasks.gate.evidence import Evidence, Shared, agreeing, shared
from tasks.gate.power import Claims, NotWorse
from tasks.gate.verdict import Rule, State
from tasks.paired import Pairs
from tasks.params import PromoteParams


def judge(
    challenger: Evidence, champion: Evidence | None, test: Shared, rules: PromoteParams
) -> list[Rule]:
    """The rules; by cross-validation where the test set is small and both bring folds."""
    options = (rules.confidence, rules.min_gain, rules.max_loss)
    claims, tested = Claims(*options), Pairs.of(test.steps, test.groups)
    pairs, where = tested, f"{len(test.examples):,} test examples"
    if len(test.examples) < rules.folds_below:
        folds = _by_folds(challenger, champion, test)
        if folds and folds[0].examples > tested.examples:
            pairs, where = folds
    rival = champion.name if champion else "the commonest class"
    # Folds judge the recipe; what the model itself does on the test set must not stand against it.
    levels = [rules.confidence, rules.confidence, 2 * power.CERTAIN - 1]
    found = paired.intervals([pairs, tested, pairs], levels).tolist()
    span, (_, high_tested), (certain_low, _) = found
    made = [
        _better(pairs, claims, span, rival, where),
        _not_worse(pairs, certain_low, claims),
        _min_gain(min(span[1], high_tested), claims),
    ]
    if test.newest is not None:
        old = ~test.newest
        if not old.any():
            why = "Nothing of the champion's test set is left to judge by; all of it is newer."
            return [*made, Rule("frozen_test", "skipped", why)]
        frozen = Pairs.of(test.steps[old], test.groups[old])
        made.append(_frozen_test(frozen, NotWorse(*options), int(old.sum())))
    return made


def _by_folds(
    challenger: Evidence, champion: Evidence | None, test: Shared
) -> tuple[Pairs, str] | None:
    """The pairs of cross-validated answers, and of what in words; None unless both brought some.

    Of the examples that both have, with the label that both know: each was judged by models that
    had not seen it. What is newer than the champion is in no fold of its own, so what the models
    themselves say of it on the test set counts too: a world that has changed must show.

    Models of different folds share most of their training data, so their errors are not separate:
    variance grows by 1 + k / (k - 1) for k folds (Nadeau and Bengio, Machine Learning 2003).
    """
    ours, theirs = challenger.folds, champion.folds if champion else None
    if ours is None or theirs is None:
        return None
    same = agreeing(ours, theirs)
    if same.empty:
        return None
    both, count = shared(same, theirs), int(ours["fold"].nunique())
    steps, names = [both.steps], [both.examples["group"]]
    where = f"{len(both.examples):,} cross-validated ones"
    if test.newest is not None:
        steps.append(test.steps[test.newest])
        names.append(test.examples["group"][test.newest])
        where += f" and {len(steps[1]):,} newer test examples"
    groups = pd.factorize(pd.concat(names))[0]
    return Pairs.of(np.concatenate(steps), groups, 1 + count / (count - 1)), where


def _better(pairs: Pairs, claims: Claims, span: list[float], rival: str, where: str) -> Rule:
    p, (low, high) = float(paired.p_values(pairs.gained, pairs.lost)), span
    state: State = "passed" if p <= (1 - claims.confidence) / 2 else "undecided"
    detectable = power.detectable(pairs, claims)
    gain = f"{points(pairs.gain)} points ({points(low)} to {points(high)}) against {rival}"
    sure = f"surely better on {where}" if state == "passed" else f"not surely better on {where}"
    numbers = {
        "gain": pairs.gain,
        "low": low,
        "high": high,
        "p_value": p,
        "only_challenger_right": round(pairs.gained * pairs.design * pairs.few),
        "only_champion_right": round(pairs.lost * pairs.design * pairs.few),
        "examples": pairs.all,
        "independent": pairs.examples,
        "detectable": detectable,
    }
    told = f"{gain}: {sure}, which tell apart {points(detectable)} or more."
    needed = None if state == "passed" else power.needed(pairs, claims)
    return Rule("better", state, told, numbers, needed)


def _not_worse(pairs: Pairs, low: float, claims: Claims) -> Rule:
    allowed = f"the {100 * claims.max_loss:g} points that may be lost"
    numbers = {"low": low, "max_loss": claims.max_loss}
    if low > -claims.max_loss:
        return Rule("not_worse", "passed", f"Surely no worse by {allowed}.", numbers)
    told = f"It may lose {points(-low).lstrip('+')} points, more than {allowed}."
    return Rule("not_worse", "undecided", told, numbers, power.needed(pairs, claims))


def _frozen_test(pairs: Pairs, claims: Claims, examples: int) -> Rule:
    """The champion's own test set, without what has come since."""
    worse = float(paired.p_values(pairs.lost, pairs.gained)) <= (1 - claims.confidence) / 2
    [[low, _]] = paired.intervals([pairs], 2 * power.CERTAIN - 1).tolist()
    numbers = {"gain": pairs.gain, "low": low, "examples": examples, "max_loss": claims.max_loss}
    told = f"{points(pairs.gain)} points on the champion's own {examples:,} test examples"
    if worse:
        return Rule("frozen_test", "failed", f"{told}: surely worse.", numbers)
    if low > -claims.max_loss:
        return Rule(
            "frozen_test", "passed", f"{told}: surely no worse by what may be lost.", numbers
        )
    may = points(-low).lstrip("+")
    told = f"{told}: it may lose {may} there."
    return Rule("frozen_test", "undecided", told, numbers, power.needed(pairs, claims))


def _min_gain(high: float, claims: Claims) -> Rule:
    asked = f"the {100 * claims.min_gain:g} points that make a change worth it"
    numbers = {"high": high, "min_gain": claims.min_gain}
    if high < claims.min_gain:
        told = f"The gain is at most {points(high)} points, surely below {asked}."
        return Rule("min_gain", "failed", told, numbers)
    return Rule("min_gain", "passed", f"The gain is not surely below {asked}.", numbers)


def points(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")
