"""The ranking of backbones: their score, who is close enough for a race, and the choice in words.

The score is a mean of accuracies less what the backbone costs:

    score = mean(ridge, knn, prior) − cost_weight × log(cost / cost of the cheapest) / log(1000)

`ridge` is that of the depth that tells the classes apart best. `prior` is the accuracy that the
weights were published with, on the scale of this data: so many standard deviations from the mean of
the candidates that have one. How well a network did before says much about how well it transfers
(Kornblith et al., CVPR 2019, arXiv:1805.08974), and other things than its frozen features do.

`cost_weight` is the accuracy that a candidate of a thousand times the cost has to bring, and a
third of it for ten times; `prefer` says whether the cost is compute or parameters. Equal scores go
to the cheaper one, then to the first name.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.params import SelectParams
from tasks.records import Candidate

if TYPE_CHECKING:
    from tasks.contest import Outcome

CLOSE = 0.03  # of the best score: candidates that only a race can tell apart
_COST_SPAN = 1000.0


def rank(candidates: Sequence[Candidate], options: SelectParams) -> list[Candidate]:
    """The candidates with score and rank, best first, those beyond a limit last."""
    value, expected = worth(candidates, options), _expected(candidates)
    scored = [
        replace(c, score=round(value(c.backbone, x), 6))
        for c, x in zip(candidates, expected, strict=True)
    ]
    scored.sort(key=lambda c: (bool(c.ruled_out), -c.score, _cost(c, options.prefer), c.backbone))
    return [replace(candidate, rank=i) for i, candidate in enumerate(scored, start=1)]


def _expected(candidates: Sequence[Candidate]) -> list[float]:
    """The accuracy to expect of each; the prior counts a third where at least two have one."""
    measured = [(max([c.ridge, *c.depths.values()]) + c.knn) / 2 for c in candidates]
    known = [(x, c.prior) for x, c in zip(measured, candidates, strict=True) if c.prior is not None]
    if len(known) < 2:
        return measured
    here, before = ([pair[i] for pair in known] for i in (0, 1))
    spread = statistics.pstdev(before) or 1.0
    centre, scale = statistics.mean(here), statistics.pstdev(here) / spread

    def on_this_scale(prior: float) -> float:
        return centre + scale * (prior - statistics.mean(before))

    return [
        x if c.prior is None else (2 * x + on_this_scale(c.prior)) / 3
        for x, c in zip(measured, candidates, strict=True)
    ]


def worth(candidates: Sequence[Candidate], options: SelectParams) -> Callable[[str, float], float]:
    """What an accuracy of a backbone is worth, less what it costs against the cheapest."""
    costs = {c.backbone: max(1, _cost(c, options.prefer)) for c in candidates}
    cheapest = min(costs.values())
    weight = 0.0 if options.prefer == "accuracy" else options.cost_weight

    def value(backbone: str, accuracy: float) -> float:
        return accuracy - weight * math.log(costs[backbone] / cheapest) / math.log(_COST_SPAN)

    return value


def shortlist(ranked: Sequence[Candidate], most: int) -> list[Candidate]:
    """The candidates that a race has to tell apart: the best, and those close behind it."""
    allowed = [c for c in ranked if not c.ruled_out]
    return [c for c in allowed[:most] if c.score >= allowed[0].score - CLOSE]


def by_race(
    candidates: Sequence[Candidate], outcome: Outcome
) -> tuple[list[Candidate], dict[str, Any]]:
    """The candidates ranked anew, the winner and those of the race first, and what it says about
    the scores: `same_first`, Kendall's `tau`, whether the favourite was `kept` though another came
    further, that one's `lead` in accuracy (null: there was none), and the race's `multiply_adds`.

    The scores are held against the order in which they raced: the winner has its place by score
    where the race could not tell, and would agree with itself.
    """
    from scipy.stats import kendalltau

    by_name = {c.backbone: c for c in candidates}
    raced = [replace(by_name[name], race=outcome.rounds[name]) for name in outcome.order]
    tau = kendalltau([c.rank for c in raced], range(len(raced))).statistic
    agreement = {
        "same_first": raced[0].rank == min(c.rank for c in raced),
        "tau": round(float(tau), 4),
        "kept": outcome.winner != outcome.order[0],
        "lead": outcome.lead,
        "multiply_adds": sum(r["multiply_adds"] for c in raced for r in c.race),
    }
    raced.sort(key=lambda c: c.backbone != outcome.winner)
    ordered = [*raced, *(c for c in candidates if c.backbone not in outcome.rounds)]
    return [replace(c, rank=i) for i, c in enumerate(ordered, start=1)], agreement


def why(
    ranked: Sequence[Candidate],
    chosen: str,
    automatic: bool,
    lead: dict[str, float] | None = None,
    what: str = "an example",
) -> str:
    """One sentence on the choice; `lead` as in `by_race`; `what` an example is called."""
    best = next(c for c in ranked if c.backbone == chosen)
    figures = (
        f"leave-one-out accuracy {best.ridge:.3f} with a ridge head and {best.knn:.3f} with "
        f"nearest neighbours, at {best.flops / 1e9:.2f} billion multiply-adds {what}"
    )
    allowed = [c for c in ranked if not c.ruled_out]
    out = f"; {len(ranked) - len(allowed)} beyond a limit" if len(allowed) < len(ranked) else ""
    if not automatic:
        return (
            f"{chosen} is set by select.backbone ({figures}); "
            f"by score it is number {best.rank} of {len(ranked)}."
        )
    if len(allowed) == 1:
        return f"{chosen} is the only candidate{out} ({figures})."
    second = allowed[1]
    if best.race:
        last = min(len(best.race), len(second.race)) - 1
        own = best.race[last]["accuracy"]["value"]
        other = second.race[last]
        beside = f"{second.backbone} on {other['accuracy']['value']:.1%}"
        if other["validation_loss"] is None:
            beside = f"{second.backbone} diverged"
        raced = sum(bool(c.race) for c in ranked)
        kept = lead is not None and best.score == max(c.score for c in allowed)
        won = "keeps its lead by score in" if kept else "has won"
        doubt = ", which does not tell them apart" if kept else ""
        return (
            f"{chosen} {won} a race of {raced} close candidates, its cost counted: right on "
            f"{own:.1%} of validation after {best.race[last]['epochs']} epochs, "
            f"{beside}{doubt}{out} ({figures})."
        )
    if second.score == best.score:
        return f"{chosen} scores as well as {second.backbone} and costs no more{out} ({figures})."
    return (
        f"{chosen} has the best score of {len(allowed)} candidates, {best.score:.3f} against "
        f"{second.score:.3f} of {second.backbone}{out} ({figures})."
    )


def _cost(candidate: Candidate, prefer: str) -> int:
    return candidate.parameters if prefer == "size" else candidate.flops
