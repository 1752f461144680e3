"""No class and no slice of the data may pay for the gain.

A class or slice fails the rule when its loss is both no chance and beyond the margin: exact McNemar
among its examples, corrected over all classes and slices together (Holm 1979), and an estimate of
more than `class_margin`. So a challenger that loses nowhere is refused by chance in at most
1 - `confidence` of all cases, however many small classes there are. Where the same test leaves less
than `DOUBT` to chance, the rule is undecided: a small class among many can prove no more, and how
many examples of it would is not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks import evidence, labelling, paired, slices
from tasks.gate.accuracy import points
from tasks.gate.evidence import Shared
from tasks.gate.verdict import Rule, State
from tasks.paired import Pairs
from tasks.params import PromoteParams
from tasks.records import COLUMN

TOLD = 20  # of a rule, those that lost most
DOUBT = 0.1  # of all cases in which nothing is lost: so many are left undecided by chance


def judge(test: Shared, rules: PromoteParams, several: bool = False) -> list[Rule]:
    """The rules `classes` and `slices`; of `several` labels, a class is all examples with one."""
    found = [*_classes(test, several), *_slices(test)]
    pairs = [Pairs.of(test.steps[here], test.groups[here]) for _, _, here in found]
    p = paired.holm(paired.p_values([each.lost for each in pairs], [each.gained for each in pairs]))
    spans = paired.intervals(pairs, rules.confidence)
    rows: dict[str, list[dict[str, Any]]] = {"classes": [], "slices": []}
    for (kind, name, here), each, adjusted, (low, high) in zip(found, pairs, p, spans, strict=True):
        state: State = "passed"
        if each.gain < -rules.class_margin and adjusted <= max(DOUBT, 1 - rules.confidence):
            state = "failed" if adjusted <= 1 - rules.confidence else "undecided"
        rows[kind].append(
            {
                "name": name,
                "examples": int(here.sum()),
                "gain": each.gain,
                "low": float(low),
                "high": float(high),
                "p_value": float(adjusted),
                "state": state,
            }
        )
    return [_rule(kind, each, len(found), rules.class_margin) for kind, each in rows.items()]


def unjudged() -> list[Rule]:
    """The rules where there is no champion: of the commonest class, every model loses something."""
    told = "There is no champion that had more of it right."
    return [Rule(kind, "skipped", told) for kind in ("classes", "slices")]


def _rule(kind: str, rows: list[dict[str, Any]], tested: int, margin: float) -> Rule:
    if not rows:
        return Rule(kind, "skipped", "The data has no slices (prepare.columns).")
    rows.sort(key=lambda row: row["gain"])
    numbers = evidence.plain({"margin": margin, "tested": tested, "worst": rows[:TOLD]})

    def named(state: State) -> str:
        found = [f"{row['name']} ({points(row['gain'])})" for row in rows if row["state"] == state]
        return ", ".join(found[:5])

    if failed := named("failed"):
        lost = f"More than {100 * margin:g} points are lost, which is no chance: {failed}."
        return Rule(kind, "failed", lost, numbers)
    if doubtful := named("undecided"):
        lost = f"More than {100 * margin:g} points may be lost, hardly by chance: {doubtful}."
        return Rule(kind, "undecided", lost, numbers)
    told = f"None of {len(rows):,} surely loses more than {100 * margin:g} points"
    worst = f"{rows[0]['name']} most: {points(rows[0]['gain'])}"
    return Rule(kind, "passed", f"{told}; {worst}." if rows[0]["gain"] < 0 else f"{told}.", numbers)


def _classes(test: Shared, several: bool) -> Iterator[tuple[str, str, Any]]:
    known = labelling.of(test.examples["label"].unique(), several)
    truth = known.truth(labelling.targets(test.examples["label"]))
    for number, name in enumerate(known.classes):
        yield "classes", str(name), labelling.has(truth, number)


def _slices(test: Shared) -> Iterator[tuple[str, str, Any]]:
    """What is newer than the champion, and the values of the data's own columns; rare ones not."""
    if test.newest is not None and slices.LEAST <= test.newest.sum() < len(test.newest):
        yield "slices", "newest data", test.newest
    for column in (str(name) for name in test.examples if str(name).startswith(COLUMN)):
        values = slices.values(test.examples[column])
        for value in sorted(values.unique(), key=str):
            here = (values == value).to_numpy()
            if slices.LEAST <= here.sum() < len(here):
                yield "slices", f"{column.removeprefix(COLUMN)} {value}", here
