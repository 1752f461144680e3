"""One retraining for each slot and each version of the data, whoever asks, however often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tasks import promotion
from tasks.claim import KEY, Claim, last_slot
from tasks.ledger import BEGUN, KEPT, PROMOTION, ROLLBACK, SKIPPED, WAITING, Entry
from tests.tasks import rivals, trained_project

CLAIM = Claim("nightly", "2026-11-28T03:00:00+00:00", "data", "params", "/here", host="a")


def entry(kind: str, of: Claim | None = CLAIM, **evidence: object) -> Entry:
    told = {} if of is None else of.evidence()
    return Entry(kind, "shoes", "champion", 1, 1, {**told, **evidence})


def test_what_is_done_or_begun_elsewhere_is_taken_and_ones_own_is_taken_up_again() -> None:
    elsewhere = replace(CLAIM, host="b")
    assert CLAIM.taken([]) is None and CLAIM.taken([entry(PROMOTION, None)]) is None
    assert CLAIM.taken([entry(BEGUN)]) is None  # we were killed
    assert CLAIM.taken([other := entry(BEGUN, elsewhere)]) == other
    assert CLAIM.taken([entry(BEGUN), done := entry(KEPT)]) == done
    assert CLAIM.taken([entry(BEGUN, elsewhere), done := entry(SKIPPED, elsewhere)]) == done


@pytest.mark.parametrize("change", [{"slot": "later"}, {"data": "new"}, {"deployment": "b"}])
def test_another_slot_data_or_deployment_is_another_retraining(change: dict[str, str]) -> None:
    assert replace(CLAIM, **change).taken([entry(BEGUN), entry(KEPT)]) is None
    assert replace(CLAIM, slot="").taken([entry(KEPT, replace(CLAIM, slot=""))]) is None


def test_what_was_judged_is_not_judged_every_night_again() -> None:
    kept = entry(KEPT, challenger=2)
    tonight = replace(CLAIM, slot="tonight")
    assert tonight.judged([entry(BEGUN), kept, entry(SKIPPED, tonight)]) == kept
    assert tonight.judged([waits := entry(WAITING, challenger=2)]) == waits
    assert tonight.judged([kept, entry(ROLLBACK, None)]) is None  # against another champion
    assert tonight.judged([entry(PROMOTION, challenger=2)]) is None
    assert replace(tonight, data="new").judged([kept]) is None
    assert replace(tonight, params="new").judged([kept]) is None


def test_tries_are_counted_of_what_was_begun_here_and_has_no_end() -> None:
    tonight = replace(CLAIM, slot="tonight", deployment="by hand")
    assert tonight.tries([entry(KEPT), entry(BEGUN), entry(PROMOTION, None)]) == 1
    assert tonight.tries([]) == 0
    assert tonight.tries([entry(BEGUN), entry(KEPT)]) == 0
    elsewhere = entry(KEPT, replace(CLAIM, host="b"))
    assert tonight.tries([entry(BEGUN), elsewhere]) == 0  # another machine has done it
    assert tonight.tries([entry(BEGUN)] * 3) == 3
    given_up = [*[entry(BEGUN)] * 3, entry(SKIPPED)]
    assert tonight.tries(given_up) == 3  # for good, not for a night
    for change in ({"data": "new"}, {"params": "new"}, {"host": "b"}, {"project": "/there"}):
        assert replace(tonight, **change).tries([entry(BEGUN)]) == 0


def test_the_last_slot_is_that_of_the_deployment() -> None:
    entries = [entry(SKIPPED), entry(KEPT, replace(CLAIM, deployment="x", slot="2027"))]
    entries.append(entry(BEGUN, replace(CLAIM, slot="2028")))  # killed: to be caught up
    assert last_slot(entries, "nightly") == CLAIM.slot
    assert last_slot(entries, "nobody") == ""


@pytest.mark.parametrize("count", [4, pytest.param(50, marks=pytest.mark.long)])
def test_of_many_that_ask_at_once_one_does_it(tmp_path: Path, count: int) -> None:
    project = trained_project.with_store(tmp_path / "project")
    barrier, answers = rivals.PROCESSES.Barrier(count), rivals.PROCESSES.Queue()
    wanted = [replace(CLAIM, host=f"machine {number}") for number in range(count)]
    asking = [
        rivals.PROCESSES.Process(target=rivals.ask, args=(project.root, each, barrier, answers))
        for each in wanted
    ]
    for process in asking:
        process.start()
    won = [answers.get(timeout=240) for _ in asking]
    for process in asking:
        process.join(60)
    assert won.count(True) == 1
    noted = [e for e in promotion.entries(project, rivals.PARAMS) if KEY in e.evidence]
    assert len(noted) == 1
